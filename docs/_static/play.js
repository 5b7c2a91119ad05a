"use strict";

// Charts with sliders: what a chart shows for each position was computed when the site was built.
const COLORS = ["#3b82c4", "#e07b39", "#3a9d5d", "#a864c4", "#c9a227", "#d6577d", "#5aa9a3", "#8a6d3b", "#7f7fd5", "#888888"];
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [640, 340, 66, 14, 36, 52];

function element(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function scale(axis, start, end) {
  const of = axis.log ? Math.log : (value) => value;
  const [low, high] = [of(axis.low), of(axis.high)];
  return (value) => start + ((of(value) - low) / (high - low)) * (end - start);
}

function play(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const controls = document.createElement("div");
  controls.className = "play-controls";
  const inputs = data.sliders.map((slider) => {
    const label = document.createElement("label");
    const name = document.createElement("span");
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: 0, max: slider.values.length - 1, step: 1, value: slider.start });
    label.append(name, input);
    controls.append(label);
    input.addEventListener("input", show);
    return { input, name, slider };
  });
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${data.y.label} over ${data.x.label}`);
  const text = document.createElement("figcaption");
  text.setAttribute("aria-live", "polite");
  const legend = document.createElement("div");
  legend.className = "play-legend";
  figure.append(controls, svg, legend, text);

  const x = scale(data.x, LEFT, WIDTH - RIGHT);
  const y = scale(data.y, HEIGHT - BOTTOM, TOP);
  const clip = `clip-${figure.id}`;
  element("rect", { x: LEFT, y: TOP - 4, width: WIDTH - LEFT - RIGHT, height: HEIGHT - BOTTOM - TOP + 4 },
    element("clipPath", { id: clip }, element("defs", {}, svg)));
  for (const tick of data.x.ticks) {
    element("line", { x1: x(tick), x2: x(tick), y1: TOP, y2: HEIGHT - BOTTOM, class: "play-grid" }, svg);
    element("text", { x: x(tick), y: HEIGHT - BOTTOM + 20, "text-anchor": "middle" }, svg, String(tick).replace("-", "−"));
  }
  for (const tick of data.y.ticks) {
    element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), class: "play-grid" }, svg);
    element("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, svg, String(tick).replace("-", "−"));
  }
  element("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, svg, data.x.label);
  element("text", { x: LEFT, y: 18 }, svg, data.y.label);
  const fixed = element("g", { "clip-path": `url(#${clip})` }, svg);
  const moving = element("g", { "clip-path": `url(#${clip})` }, svg);
  for (const line of data.lines || []) draw(line, fixed);

  function draw(line, parent) {
    const path = line.points.map(([a, b], index) => `${index ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    const stroke = line.color < 0 ? "currentColor" : COLORS[line.color % COLORS.length];
    if (line.area) {
      const [first, last] = [line.points[0], line.points[line.points.length - 1]];
      const floor = y(data.y.low).toFixed(1);
      element("path", { d: `${path}L${x(last[0]).toFixed(1)} ${floor}L${x(first[0]).toFixed(1)} ${floor}Z`, fill: stroke, opacity: 0.2 }, parent);
    }
    element("path", { d: path, fill: "none", stroke, "stroke-width": line.thin ? 1.3 : 2.4, opacity: line.color < 0 ? 0.35 : 1 }, parent);
  }

  function show() {
    let index = 0;
    for (const { input, name, slider } of inputs) {
      index = index * slider.values.length + Number(input.value);
      name.textContent = `${slider.label}: ${slider.values[input.value]}`;
      input.setAttribute("aria-valuetext", slider.values[input.value]);
    }
    const frame = data.frames[index];
    moving.replaceChildren();
    for (const line of frame.lines || []) draw(line, moving);
    if (frame.vertical !== undefined)
      element("line", { x1: x(frame.vertical), x2: x(frame.vertical), y1: TOP, y2: HEIGHT - BOTTOM, class: "play-vertical" }, moving);
    (frame.dots || []).forEach(([a, b], number) =>
      element("circle", { cx: x(a), cy: y(b), r: 6, class: number ? "play-end" : "play-start" }, moving));
    text.textContent = frame.text;
    legend.replaceChildren(...[...(data.lines || []), ...(frame.lines || [])].filter((line) => line.name).map((line) => {
      const entry = document.createElement("span");
      entry.textContent = line.name;
      entry.style.setProperty("--color", COLORS[line.color % COLORS.length]);
      return entry;
    }));
  }
  show();
}

document.querySelectorAll("figure.play").forEach(play);
