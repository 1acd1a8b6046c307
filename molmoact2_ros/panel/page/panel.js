// The page of the panel: shows what the node sends, and asks it for what a person presses. It decides nothing.
"use strict";

const SPAN_MS = 60000, ALIVE_MS = 300, AGAIN_MS = 700, CONFIRM_MS = 1500, DEAF_MS = 3000;
const PLOTS = [["Policy latency", "ms", 0], ["Chunk age", "ms", 0], ["Depth cells reused", "%", 0], ["At a limit", "ticks/s", 0]];
const $ = (id) => document.getElementById(id);

let socket = null, heard = 0;
let view = { robots: [] }, selected = "";
let scene = "";               // where the 3D view is, for as long as the node runs
let stopWaits = false;        // pressed while there was no connection
let stopSent = 0;             // when the last STOP was sent that no robot has confirmed yet
const series = new Map();     // robot -> points of each plot
const waiting = new Set();    // requests without an answer, "robot ask"
const plots = PLOTS.map(([name, unit, digits]) => new Plot($("plots"), name, unit, digits, SPAN_MS));

// -- the connection ---------------------------------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const opened = socket = new WebSocket(`${scheme}://${location.host}/live`);
  opened.binaryType = "arraybuffer";
  let open = false;
  opened.onopen = () => {
    open = true;
    heard = performance.now();
    if (stopWaits) sendStop();
    link();
  };
  opened.onmessage = (event) => {
    heard = performance.now();
    if (typeof event.data === "string") take(JSON.parse(event.data));
    else picture(new Uint8Array(event.data));
    link();
  };
  opened.onclose = () => {
    if (socket !== opened) return;
    socket = null;
    waiting.clear();
    link();
    setTimeout(connect, AGAIN_MS);
    if (!open) askWhy();
  };
}

// A page that is no longer let in (another token since) shows where to type it.
async function askWhy() {
  try {
    if ((await fetch("/", { cache: "no-store" })).status === 401) location.reload();
  } catch { /* the node is not there */ }
}

const there = () => socket !== null && socket.readyState === WebSocket.OPEN && performance.now() - heard < DEAF_MS;

function send(message) {
  if (socket === null || socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

function link() {
  const up = there();
  const chip = $("link");
  chip.textContent = up ? "connected" : "not connected";
  chip.className = `chip ${up ? "go" : "bad"}`;
  const alarm = $("alarm");
  const late = stopSent && performance.now() - stopSent > CONFIRM_MS;
  alarm.hidden = up && !late && !stopWaits;
  if (!up) {
    alarm.textContent = stopWaits
      ? "STOP HAS NOT BEEN SENT: no connection to the panel. It goes out as soon as there is one. Use another stop now."
      : "No connection to the panel: nothing on this page stops the arm now, and what it shows is old.";
    document.body.dataset.link = "lost";
  } else {
    if (late) alarm.textContent = "STOP was sent, and no executor has confirmed it. Use another stop now.";
    document.body.dataset.link = "up";
  }
}

// -- what is sent -------------------------------------------------------------------------------------------------------

function sendStop() {
  stopWaits = !send({ ask: "stop" });
  if (!stopWaits) stopSent = performance.now();
}

function stop() {
  sendStop();
  $("stop").classList.add("sent");
  setTimeout(() => $("stop").classList.remove("sent"), 250);
  link();
}

function request(ask, fields = {}) {
  const robot = current();
  if (!robot) return;
  const why = robot.buttons[ask];
  if (why) return say(false, why);
  if (send({ ask, robot: robot.name, ...fields })) {
    waiting.add(`${robot.name} ${ask}`);
    render();
  }
}

function say(ok, words) {
  $("answer").textContent = words;
  $("answer").classList.toggle("refused", !ok);
}

$("stop").addEventListener("pointerdown", (event) => { event.preventDefault(); stop(); });
$("stop").addEventListener("click", (event) => { if (event.detail === 0) stop(); });  // by Enter
// The space bar in the frame with the 3D view, which has no other way in here.
window.addEventListener("message", (event) => {
  if (event.source === $("scene").contentWindow && event.data === "stop") stop();
});
window.addEventListener("keydown", (event) => {
  if (event.code !== "Space") return;
  const typing = document.activeElement === $("task-text");
  if (typing && !current()?.moves) return;  // a blank, where nothing can move
  if (!typing) event.preventDefault();
  if (!event.repeat) stop();
}, true);
// A button that has the focus would be pressed when the key goes up.
window.addEventListener("keyup", (event) => {
  if (event.code === "Space" && document.activeElement !== $("task-text")) event.preventDefault();
}, true);
for (const button of document.querySelectorAll("button.ask[type=button]")) {
  button.addEventListener("click", () => {
    const label = button.dataset.success;
    request(button.dataset.ask, label === undefined ? {} : { success: label === "true" });
  });
}
$("task-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("task-text").value.trim();
  if (text) request("task", { text }); else say(false, "no task was typed");
});
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

$("solid").addEventListener("click", () => { keep("solid", solid() ? "off" : "on"); showScene(); });

// Off at first where the browser draws 3D without a graphics card: it takes seconds then, and this page with it.
const weak = (() => {
  const pen = document.createElement("canvas").getContext("webgl");
  const names = pen?.getExtension("WEBGL_debug_renderer_info");
  return !pen || /swiftshader|llvmpipe|software/i.test(names ? pen.getParameter(names.UNMASKED_RENDERER_WEBGL) : "");
})();
const solid = () => kept("solid", weak ? "off" : "on") === "on";

function kept(key, otherwise) {
  try { return localStorage.getItem(key) ?? otherwise; } catch { return otherwise; }
}

function keep(key, value) {
  try { localStorage.setItem(key, value); } catch { /* no storage here */ }
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  keep("theme", name);
  showScene();
  drawPlots();
}

function showScene() {
  const on = solid();
  $("solid").textContent = on ? "3D off" : "3D on";
  document.body.dataset.solid = on ? "on" : "off";
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const dark = document.documentElement.dataset.theme === "dark" ? "&darkMode" : "";
  const address = on && scene ? `${scene}?websocket=${scheme}://${location.host}${scene}&hideViserLogo${dark}` : "about:blank";
  if ($("scene").getAttribute("src") !== address) $("scene").src = address;
}

// -- what is heard ------------------------------------------------------------------------------------------------------

function take(message) {
  if (message.type === "welcome") {
    scene = message.scene;
    showScene();
  } else if (message.type === "view") {
    view = message;
    if (!view.robots.some((robot) => robot.name === selected)) selected = view.robots[0]?.name ?? "";
    const known = view.robots.filter((robot) => robot.heard);
    if (known.length && known.every((robot) => robot.stopped)) stopSent = 0;
    for (const robot of view.robots) remember(robot);
    render();
  } else if (message.type === "answer") {
    waiting.delete(`${message.robot} ${message.ask}`);
    if (message.robot === selected) say(message.ok, message.message);
    if (message.ok && message.ask === "task") $("task-text").value = "";
    render();
  } else if (message.type === "refused") {
    say(false, message.message);
  }
}

function remember(robot) {
  const now = performance.now();
  const kept = series.get(robot.name) ?? PLOTS.map(() => []);
  series.set(robot.name, kept);
  robot.sample.forEach((value, index) => {
    kept[index].push([now, value]);
    while (kept[index][0][0] < now - SPAN_MS) kept[index].shift();
  });
}

function picture(bytes) {
  const size = bytes[0] * 256 + bytes[1];
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(2, 2 + size)));
  if (header.robot !== selected) return;
  const image = document.querySelector(`#cameras img[data-camera="${CSS.escape(header.camera)}"]`);
  if (!image) return;
  const old = image.src;
  image.src = URL.createObjectURL(new Blob([bytes.subarray(2 + size)], { type: "image/jpeg" }));
  image.onload = () => { if (old.startsWith("blob:")) URL.revokeObjectURL(old); };
}

// -- what is shown ------------------------------------------------------------------------------------------------------

const current = () => view.robots.find((robot) => robot.name === selected);

function render() {
  const robot = current();
  fill($("robots"), view.robots, (one) => {
    const button = document.createElement("button");
    const dot = document.createElement("span");
    dot.className = `dot ${one.tone}`;
    button.append(dot, one.name.replace(/^\//, ""));
    button.setAttribute("aria-pressed", String(one.name === selected));
    button.onclick = () => { selected = one.name; say(true, ""); $("cameras").replaceChildren(); render(); };
    return button;
  }, view.robots.map((one) => `${one.name} ${one.tone} ${one.name === selected}`).join());
  if (!robot) return;
  $("hold").hidden = !view.hold_to_run;
  $("stop-note").textContent = view.robots.length > 1 ? `all ${view.robots.length} robots, or space bar` : "or space bar";
  $("state").textContent = robot.state;
  $("state").className = `pill ${robot.tone}`;
  $("reason").textContent = robot.reason;
  $("reason").title = robot.reason;
  $("next-words").textContent = robot.next;
  $("task").textContent = robot.task || "none";
  $("task-note").hidden = !robot.moves;
  $("handover").hidden = !robot.leads;
  $("drives").textContent = robot.drives ? `${robot.drives} drives` : "";
  $("recording").hidden = !robot.recording;
  $("recording").textContent = robot.recording;
  for (const button of document.querySelectorAll("button.ask")) {
    const why = robot.buttons[button.dataset.ask];
    button.setAttribute("aria-disabled", String(Boolean(why)));
    button.title = why;
    button.classList.toggle("waiting", waiting.has(`${robot.name} ${button.dataset.ask}`));
  }
  fill($("troubles"), robot.troubles, ({ level, words }) => {
    const line = document.createElement("li");
    line.textContent = words;
    if (level > 1) line.className = "error";
    return line;
  });
  fill($("history"), robot.tasks.slice(0, 6), (text) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.onclick = () => { $("task-text").value = text; $("task-text").focus(); };
    return button;
  });
  fill($("episodes"), robot.episodes, (episode) => {
    const row = document.createElement("tr");
    for (const text of [`#${episode.number}`, episode.task, episode.outcome, episode.length]) row.insertCell().textContent = text;
    const last = row.insertCell();
    const [first, ...others] = episode.verdict;
    last.textContent = first === undefined ? "fine" : others.length ? `${first} (and ${others.length} more)` : first;
    last.title = episode.verdict.join("\n");
    last.className = episode.verdict.length ? "doubt" : "fine";
    return row;
  });
  fill($("cameras"), Object.entries(robot.cameras), ([name, overlay]) => {
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.dataset.camera = name;
    image.alt = `camera ${name}`;
    const caption = document.createElement("figcaption");
    caption.textContent = overlay ? name : `${name}, no overlay`;
    figure.append(image, caption);
    return figure;
  });
  drawPlots();
}

// Children of `parent` made anew, but only where what they are made from has changed.
function fill(parent, items, make, key = JSON.stringify(items)) {
  const whose = `${selected} ${key}`;
  if (parent.dataset.made === whose && parent.childElementCount === items.length) return;
  parent.dataset.made = whose;
  parent.replaceChildren(...items.map(make));
}

function drawPlots() {
  const kept = series.get(selected);
  plots.forEach((plot, index) => plot.draw(kept ? kept[index] : [], performance.now()));
}

setInterval(() => { send({ ask: "alive" }); link(); }, ALIVE_MS);
theme(kept("theme", "dark"));
connect();
