"use strict";
// The measures of the cell that is pointed at or reached by keys. Every text enters by textContent, never as HTML.
(() => {
  const smear = document.getElementById("smear"), panel = document.getElementById("cell-facts");
  const hint = [...panel.childNodes];
  const cells = [...smear.querySelectorAll(".cell")].map((path) => {
    const title = path.querySelector("title");
    const facts = title.textContent.split("\n");
    title.remove(); // the panel says it; without a script the browser's own tooltip does
    return { path, facts };
  });
  const byPath = new Map(cells.map((cell) => [cell.path, cell]));
  let chosen = null;

  function element(tag, text) {
    const node = document.createElement(tag);
    node.textContent = text;
    return node;
  }

  function choose(cell) {
    if (cell === chosen) return;
    if (chosen) chosen.path.classList.remove("chosen");
    chosen = cell;
    if (!cell) return panel.replaceChildren(...hint);
    cell.path.classList.add("chosen");
    const list = document.createElement("dl");
    for (const fact of cell.facts.slice(1)) {
      const cut = fact.indexOf(": ");
      list.append(element("dt", fact.slice(0, cut)), element("dd", fact.slice(cut + 2)));
    }
    panel.replaceChildren(element("h3", cell.facts[0]), list);
  }

  function middle(cell) {
    const box = cell.path.getBBox();
    return [box.x + box.width / 2, box.y + box.height / 2];
  }

  // The nearest shown cell in a direction; what lies aside counts as farther.
  function next(right, down) {
    const shown = cells.filter((cell) => getComputedStyle(cell.path).display !== "none");
    if (!chosen || !shown.includes(chosen)) return shown[shown.length - 1] ?? null;
    const [x, y] = middle(chosen);
    let best = chosen, least = Infinity;
    for (const cell of shown) {
      const [cx, cy] = middle(cell);
      const ahead = (cx - x) * right + (cy - y) * down, aside = Math.abs((cx - x) * down) + Math.abs((cy - y) * right);
      if (ahead > 0.5 && ahead + 2 * aside < least) [best, least] = [cell, ahead + 2 * aside];
    }
    return best;
  }

  function follow() {
    const target = byPath.get(document.getElementById(location.hash.slice(1)));
    if (target) choose(target);
  }

  const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  smear.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Escape") choose(null);
    else if (event.key in steps) {
      event.preventDefault();
      choose(next(...steps[event.key]));
    }
  });
  smear.addEventListener("focus", () => {
    if (!chosen && smear.matches(":focus-visible")) choose(next(0, 0));
  });
  for (const kind of ["pointerover", "click"]) {
    smear.addEventListener(kind, (event) => {
      if (byPath.has(event.target)) choose(byPath.get(event.target));
    });
  }
  for (const button of document.querySelectorAll("[data-kinds]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      for (const box of document.querySelectorAll(".kinds input")) {
        box.checked = button.dataset.kinds === "all" || !["show-k-normal", "show-k-left-out"].includes(box.id);
      }
    });
  }
  addEventListener("hashchange", follow);
  follow();
})();
