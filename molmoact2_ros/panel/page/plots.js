// Small plots of the last minute: one line each, the newest value in words, gaps where nothing was known.
"use strict";

class Plot {
  constructor(parent, name, unit, digits, span) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = name;
    this.value = document.createElement("b");
    caption.append(this.value);
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-label", name);
    figure.append(caption, this.canvas);
    parent.append(figure);
    Object.assign(this, { unit, digits, span });
  }

  // Points are [time, value or null] with the time in ms of performance.now(), the oldest first.
  draw(points, now) {
    const last = points.length ? points[points.length - 1][1] : null;
    this.value.textContent = last === null ? "-" : `${last.toFixed(this.digits)} ${this.unit}`;
    const ratio = devicePixelRatio || 1;
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    if (!width) return;
    if (this.canvas.width !== Math.round(width * ratio)) {
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round(height * ratio);
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const style = getComputedStyle(document.documentElement);
    const highest = Math.max(1e-9, ...points.map(([, value]) => value ?? 0));
    const top = nice(highest);
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(0, height / 2 + 0.5);
    pen.lineTo(width, height / 2 + 0.5);
    pen.stroke();
    pen.fillStyle = style.getPropertyValue("--dim");
    pen.font = "10px system-ui, sans-serif";
    if (highest > 1e-6) pen.fillText(`${top}`, 3, 10);
    pen.strokeStyle = style.getPropertyValue("--accent");
    pen.lineWidth = 1.6;
    pen.beginPath();
    let down = false;
    for (const [time, value] of points) {
      if (value === null) { down = false; continue; }
      const x = width * (1 - (now - time) / this.span);
      const y = height - 2 - (height - 4) * Math.min(value / top, 1);
      if (down) pen.lineTo(x, y); else pen.moveTo(x, y);
      down = true;
    }
    pen.stroke();
  }
}

// The next of 1, 2, 5, 10, ... that is not below `value`.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= value * 0.999) ?? 10;
  return +(step * power).toPrecision(1);
}
