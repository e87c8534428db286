// Makes a picture of the shapes that lockguard_logs/_drawing.py draws. Words become text and never markup.
const SVG = "http://www.w3.org/2000/svg";
const PLACES = {
  text: ["x", "y", "class", "text-anchor"],
  rect: ["x", "y", "width", "height", "rx", "class"],
  line: ["x1", "y1", "x2", "y2", "class"],
  path: ["d", "class"],
};

function element(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export function picture(drawing) {
  const svg = element("svg", {
    viewBox: `0 0 ${drawing.width} ${drawing.height}`, role: "img", "aria-label": drawing.title,
  });
  for (const [tag, given, words, told] of drawing.shapes) {
    const known = PLACES[tag];
    if (!known) continue;
    const shape = element(tag, Object.fromEntries(known.filter((name) => name in given).map((name) => [name, given[name]])));
    if (told) {
      const tip = element("title", {});
      tip.textContent = told;
      shape.append(tip);
    }
    if (words) shape.append(words);
    svg.append(shape);
  }
  return svg;
}
