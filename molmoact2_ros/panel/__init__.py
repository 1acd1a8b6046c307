"""The operator's panel in a browser: what it shows, its page, who may see it. Knows nothing of ROS."""

HOST, PORT = "127.0.0.1", 8090
"""Where the page is served unless somebody says otherwise."""
