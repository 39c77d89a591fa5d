"use strict";
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// What does nothing without a script is hidden or disabled until here.
for (const element of all(".needs-script")) element.hidden = false;
for (const button of all("button")) button.disabled = false;

// Tables that can be sorted: the first press on a column puts its smallest value first, the second its largest.
for (const table of all("table.sortable")) {
  const headers = all("thead th", table);
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => Number(row.cells[column].dataset.value);
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((a, b) => sign * (value(a) - value(b))));
    });
  });
}

// The confusion matrix: a cell shows its images and hides the others.
const images = document.getElementById("images");
const shown = document.getElementById("shown");
const showAll = document.getElementById("show-all");
const cells = all(".matrix button");

const choose = (chosen) => {
  for (const button of cells) button.setAttribute("aria-pressed", button === chosen);
  for (const element of all("[data-cell]", images)) {
    element.hidden = Boolean(chosen) && element.dataset.cell !== chosen.dataset.cell;
  }
  for (const list of all("details.more", images)) {
    list.open = Boolean(chosen) && !list.hidden && Boolean(list.querySelector("li:not([hidden])"));
  }
  for (const list of all("details.more:not([data-cell])", images)) list.hidden = Boolean(chosen) && !list.open;
  for (const section of all("section", images)) {
    section.hidden = Boolean(chosen) && !section.querySelector("[data-cell]:not([hidden])");
  }
  showAll.hidden = !chosen;
  const n = all("li[id]", images).filter((image) => !image.closest("[hidden]")).length;
  // Of many images only some are listed.
  const total = chosen ? Number(chosen.querySelector(".of-images").textContent) : n;
  const what = n < total ? "of them" : n === 1 ? "image" : "images";
  const below = `Below ${n === 1 ? "is" : "are"} ${n} ${what}.`;
  shown.textContent = chosen ? `${chosen.getAttribute("aria-label")}. ${below}` : "Below are all images.";
};

if (cells.length > 0) {
  const byCell = new Map(cells.map((button) => [button.dataset.cell, button]));
  const side = all(".matrix tbody tr").length;
  // One stop for the tab key; the arrow keys go to the next cell with images.
  const stop = (button) => {
    for (const other of cells) other.tabIndex = other === button ? 0 : -1;
  };
  stop(cells[0]);
  for (const button of cells) {
    button.setAttribute("aria-pressed", false);
    button.addEventListener("click", () => {
      stop(button);
      choose(button.getAttribute("aria-pressed") === "true" ? null : button);
    });
    button.addEventListener("keydown", (event) => {
      if (!(event.key in arrows)) return;
      event.preventDefault();
      const [right, down] = arrows[event.key];
      let [row, column] = button.dataset.cell.split("-").map(Number);
      do {
        row += down;
        column += right;
        const next = byCell.get(`${row}-${column}`);
        if (next) {
          stop(next);
          next.focus();
          return;
        }
      } while (row >= 0 && row < side && column >= 0 && column < side);
    });
  }
  showAll.addEventListener("click", () => {
    const chosen = cells.find((button) => button.getAttribute("aria-pressed") === "true");
    choose(null);
    chosen.focus();
  });
}

// Decisions about images. What is pressed again is taken back. They outlast a reload, where the browser keeps anything for
// files.
const bar = document.getElementById("decisions");
if (bar) {
  const memory = `luthier-decisions ${location.pathname}`;
  const save = document.getElementById("save-decisions");
  const status = bar.querySelector("[role=status]");
  // Of each image the verdict, and the verdicts that have been saved, the latest last.
  let decided = {};
  try {
    decided = JSON.parse(localStorage.getItem(memory) ?? "{}");
  } catch {
    // Nothing is kept.
  }
  // An image may be shown several times. Only a card of its own says which other class it may be of.
  const byKey = new Map();
  for (const element of all("[data-decision]")) {
    const about = JSON.parse(element.dataset.decision);
    const key = `${about.image} ${about.file}`;
    if (!byKey.has(key)) byKey.set(key, { key, about, buttons: [] });
    const item = byKey.get(key);
    if (about.suggested) item.about = about;
    item.buttons.push(...all(".decide button", element));
  }
  const items = [...byKey.values()];
  const of = (key) => (decided[key] ??= { verdict: null, saved: [] });
  const isNew = ({ key }) => of(key).verdict !== (of(key).saved.at(-1)?.verdict ?? null);
  const show = () => {
    for (const { key, buttons } of items) {
      for (const button of buttons) button.setAttribute("aria-pressed", of(key).verdict === button.value);
    }
    const n = items.filter(({ key }) => of(key).verdict).length;
    save.disabled = !items.some(isNew);
    const words = n === 0 ? "Nothing is decided." : n === 1 ? "1 decision." : `${n} decisions.`;
    status.textContent = n > 0 && save.disabled ? `${words} Saved.` : words;
    try {
      localStorage.setItem(memory, JSON.stringify(decided));
    } catch {
      // Nothing is kept.
    }
  };
  for (const { key, buttons } of items) {
    for (const button of buttons) {
      button.addEventListener("click", () => {
        of(key).verdict = of(key).verdict === button.value ? null : button.value;
        show();
      });
    }
  }
  save.addEventListener("click", () => {
    // Lines have times of their own: by them they are put in order.
    let time = Date.now();
    // The file that they are added to may not end in a new line.
    const lines = ["\n"];
    for (const { key, about } of items.filter(isNew)) {
      const state = of(key);
      const line = (decision) => {
        const { image, file } = about;
        const at = new Date(time++).toISOString();
        lines.push(`${JSON.stringify({ image, file, ...decision, time: at })}\n`);
        return at;
      };
      const { verdict } = state;
      if (verdict) {
        const name = { right: about.class, change: about.suggested }[verdict];
        const was = verdict === "change" ? about.class : undefined;
        state.saved.push({ verdict, time: line({ verdict, class: name, was }) });
      } else {
        while (state.saved.length > 0) line({ verdict: "undo", undoes: state.saved.pop().time });
      }
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = "decisions.jsonl";
    link.click();
    show();
  });
  show();
}

// The map: the image nearest to the pointer, or the next one in an arrow's direction, is described beside it.
const map = document.getElementById("map");
if (map) {
  const svg = map.querySelector("svg");
  const classes = all(".point", svg);
  const rings = all(".wrong", svg);
  const highlight = document.getElementById("highlight");
  const panel = document.getElementById("point");
  const points = classes.flatMap((path, label) => {
    const numbers = (path.dataset.points ?? "").trim().split(/\s+/).map(Number);
    return Array.from({ length: Math.floor(numbers.length / 3) }, (_, place) => {
      const [row, x, y] = numbers.slice(3 * place, 3 * place + 3);
      return { row, x, y, label };
    });
  });
  const mark = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  mark.setAttribute("class", "current");
  mark.setAttribute("r", "8");
  let current = null;

  const candidates = () =>
    points.filter((point) => highlight.selectedIndex === 0 || point.label === highlight.selectedIndex - 1);
  const nearest = (x, y, among) => {
    let best = null;
    let least = Infinity;
    for (const point of among) {
      const distance = Math.hypot(point.x - x, point.y - y);
      if (distance < least) [best, least] = [point, distance];
    }
    return [best, least];
  };
  const line = (name, text) => {
    const element = document.createElement("bdi");
    element.className = name;
    element.textContent = text;
    return element;
  };
  const describe = (point) => {
    if (point === current) return;
    current = point;
    mark.setAttribute("cx", point.x);
    mark.setAttribute("cy", point.y);
    svg.append(mark);
    const image = document.getElementById(`image-${point.row}`);
    const truth = highlight.options[point.label + 1].text;
    const predicted = image.querySelector(".predicted");
    const probability = image.querySelector(".probability").textContent;
    const verdict = predicted ? `${truth}, taken for ${predicted.textContent}` : `${truth}, recognised`;
    const picture = image.querySelector(".photo:not(.nearest .photo)");
    const parts = [line("name", `${verdict} (${probability})`), line("file", image.querySelector(".file").textContent)];
    if (picture) parts.unshift(picture.cloneNode());
    panel.replaceChildren(...parts);
  };

  svg.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const [point, distance] = nearest(at.x, at.y, candidates());
    if (point && distance < 20) describe(point);
  });
  map.tabIndex = 0;
  map.setAttribute("role", "application");
  map.setAttribute("aria-label", "Map of the images: arrow keys go from image to image");
  map.addEventListener("keydown", (event) => {
    if (!(event.key in arrows)) return;
    event.preventDefault();
    const [right, down] = arrows[event.key];
    // Within 45 degrees of the arrow's direction.
    const ahead = candidates().filter((point) => {
      if (!current) return true;
      const [x, y] = [point.x - current.x, point.y - current.y];
      const along = x * right + y * down;
      return along > 0 && along >= Math.abs(x * down + y * right);
    });
    const from = current ?? { x: 0, y: 0 };
    const [next] = nearest(from.x, from.y, ahead);
    if (next) describe(next);
  });
  highlight.addEventListener("change", () => {
    const chosen = highlight.selectedIndex - 1;
    for (const paths of [classes, rings]) {
      paths.forEach((path, label) => path.classList.toggle("faded", chosen >= 0 && label !== chosen));
    }
  });
}
})();
