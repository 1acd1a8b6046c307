"""The files of the page, what they may load, and viser's page within it."""

from __future__ import annotations

from molmoact2_ros.panel.gate import SCENE

FILES = {
    "index.html": "text/html; charset=utf-8",
    "login.html": "text/html; charset=utf-8",
    "panel.css": "text/css; charset=utf-8",
    "panel.js": "text/javascript; charset=utf-8",
    "plots.js": "text/javascript; charset=utf-8",
    "login.js": "text/javascript; charset=utf-8",
}
_OWN = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; connect-src 'self' ws: wss:; "
    "base-uri 'none'; "
)

_FRAMED = b"""<style>
  /* The panel has its own controls, and says itself when the connection is lost. */
  [data-testid="floating-panel"], .mantine-Notifications-root { display: none !important; }
</style>
<script>
// In the panel's frame. viser connects only while its document has the focus, which a frame rarely has.
document.hasFocus = () => true;
// A frame without an origin may not load a module worker from a blob; viser's needs nothing that a classic one lacks.
window.Worker = class extends Worker {
  constructor(address, options) {
    if (options?.type !== "module" || !String(address).startsWith("blob:")) {
      super(address, options);
      return;
    }
    const asked = new XMLHttpRequest();
    asked.open("GET", address, false);
    asked.send();
    const code = asked.responseText.replaceAll("import.meta.url", "self.location.href");
    super(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  }
};
// The space bar stops, also after a click into the 3D view.
window.addEventListener("keydown", (event) => {
  if (event.code === "Space" && parent !== window) {
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!event.repeat) parent.postMessage("stop", "*");
  }
}, true);
</script>
"""


def policy_of(name: str) -> str:
    """The Content-Security-Policy of a page: nothing from elsewhere, and in nobody else's frame."""
    if name.startswith(SCENE):  # viser's page makes its own scripts and workers
        return "frame-ancestors 'self'"
    return f"{_OWN}frame-ancestors 'none'; form-action 'none'"


def framed(page: bytes) -> bytes:
    """viser's page with what it needs within the panel.

    Raises:
        ValueError: it has no head to put it into.
    """
    before, head, after = page.partition(b"<head>")
    if not head:
        raise ValueError("viser's page has no <head>; the panel is made for viser 1.1")
    return before + head + _FRAMED + after
