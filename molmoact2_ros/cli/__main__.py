"""`python -m molmoact2_ros.cli`."""

from molmoact2_ros.cli import main

main()
