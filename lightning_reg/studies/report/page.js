"use strict";

// A click in a legend switches a variant off or on, in all charts at once.
document.addEventListener("click", (event) => {
  const clicked = event.target.closest(".legend button");
  if (!clicked) return;
  const hidden = clicked.getAttribute("aria-pressed") === "true";
  for (const element of document.querySelectorAll(`[data-variant="${clicked.dataset.variant}"]`)) {
    if (element.tagName === "BUTTON") element.setAttribute("aria-pressed", String(!hidden));
    else element.classList.toggle("off", hidden);
  }
});

// The value at the pointer. An axis says where it begins and ends in the chart, and which values are there; the points
// are those that the lines are drawn through.
function axisOf(svg, name) {
  const [start, end, first, last] = svg.dataset[name].split(" ").map(parseFloat);
  const logarithmic = svg.dataset[name].endsWith(" log");
  const [low, high] = logarithmic ? [Math.log(first), Math.log(last)] : [first, last];
  const [label, unit = ""] = svg.dataset[`${name}Label`].split(", ");
  return {
    within: (place) => place >= Math.min(start, end) - 0.5 && place <= Math.max(start, end) + 0.5,
    text: (place) => {
      const value = low + ((place - start) / (end - start)) * (high - low);
      // Where a line crosses zero, the third digit behind the point of a place would give a number such as 1e-6.
      const small = Math.abs(value) < 1e-4 * Math.abs(high - low);
      const shown = logarithmic ? Math.exp(value) : small ? 0 : value;
      return `${label} ${String(Number(shown.toPrecision(4))).replace("-", "−")} ${unit}`.trim();
    },
  };
}

function pointsOf(svg) {
  const [x, y] = [axisOf(svg, "x"), axisOf(svg, "y")];
  const points = [];
  for (const series of svg.querySelectorAll(".series")) {
    const texts = (series.dataset.texts || "").split("\n");
    const markers = [...series.querySelectorAll("use")].map((use) => [use.getAttribute("x"), use.getAttribute("y")]);
    const path = [...series.querySelectorAll("path")].find((path) => !path.closest("defs"));
    const corners = path ? [...path.getAttribute("d").matchAll(/[ML] (\S+) (\S+)/g)].map((corner) => corner.slice(1)) : [];
    (markers.length ? markers : corners).forEach(([left, top], index) => {
      const [px, py] = [parseFloat(left), parseFloat(top)];
      if (!x.within(px) || !y.within(py)) return;
      const where = svg.dataset.value === "x" ? x.text(px) : `${x.text(px)}: ${y.text(py)}`;
      points.push({ series, x: px, y: py, text: `${series.dataset.label}\n${texts[index] || where}`.trim() });
    });
  }
  return points;
}

const box = document.getElementById("pointed");
for (const svg of document.querySelectorAll("figure svg")) {
  let points = null;
  const dot = document.createElementNS(svg.namespaceURI, "circle");
  dot.setAttribute("r", "3");
  dot.setAttribute("fill", "currentColor");
  dot.setAttribute("visibility", "hidden");
  svg.append(dot);
  const show = (event) => {
    points ??= pointsOf(svg);
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let nearest = null;
    let shortest = 24; // points of the chart, a third of an inch
    for (const point of points) {
      const distance = Math.hypot(point.x - at.x, point.y - at.y);
      if (distance < shortest && !point.series.classList.contains("off")) [nearest, shortest] = [point, distance];
    }
    box.hidden = !nearest;
    dot.setAttribute("visibility", nearest ? "visible" : "hidden");
    if (!nearest) return;
    dot.setAttribute("cx", nearest.x);
    dot.setAttribute("cy", nearest.y);
    box.textContent = nearest.text;
    box.style.left = `${Math.max(4, Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 4))}px`;
    box.style.top = `${Math.max(4, event.clientY - box.offsetHeight - 12)}px`;
  };
  const hide = () => {
    box.hidden = true;
    dot.setAttribute("visibility", "hidden");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
