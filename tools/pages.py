"""Write the pages of docs/reference that are made from the code: `make pages`."""

from pathlib import Path

from molmoact2_ros.cli import reference_page
from molmoact2_ros.nodes.ros import parameter_page, topic_page

PAGES = {"cli": reference_page.page, "parameters": parameter_page.page, "topics": topic_page.page}

if __name__ == "__main__":
    for name, made in PAGES.items():
        (Path(__file__).parents[1] / "docs" / "reference" / f"{name}.md").write_text(made())
