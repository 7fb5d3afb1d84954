/** The icons: strokes on a grid of 24. Each stands beside a word with the same meaning. */

const SVG = "http://www.w3.org/2000/svg";
/** @type {Record<string, string>} */
const PATHS = {
  overview: "M3 13h4l3-8 4 14 3-6h4",
  jobs: "M4 6h16M4 12h16M4 18h10",
  failures: "M12 3 2.5 20h19zM12 10v4M12 17v.01",
  deliveries: "M3 11 21 3l-7 18-3-7z",
  processes: "M4 4h16v6H4zM4 14h16v6H4zM8 7v.01M8 17v.01",
  plugins: "M9 3v5M15 3v5M6 8h12v4a6 6 0 0 1-12 0zM12 18v3",
  users: "M9 11a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM2 21a7 7 0 0 1 14 0M17 4a4 4 0 0 1 0 7M22 21a7 7 0 0 0-4-6",
  audit: "M6 3h9l4 4v14H6zM9 12h7M9 16h7M14 3v5h5",
  menu: "M4 6h16M4 12h16M4 18h16",
  good: "M4 12.5 9.5 18 20 7",
  warn: "M12 7v6M12 17v.01M12 2.5a9.5 9.5 0 1 0 0 19 9.5 9.5 0 0 0 0-19z",
  pause: "M8 5v14M16 5v14",
  play: "M7 4v16l13-8z",
};

/** @param {string} name @returns {SVGElement} */
export function icon(name) {
  const element = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({
    class: "icon",
    viewBox: "0 0 24 24",
    "aria-hidden": "true",
    focusable: "false",
  }))
    element.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  element.append(path);
  return element;
}
