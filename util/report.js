"use strict";
// Pages, filters and search over the images. Every text from the run enters by textContent or setAttribute, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("image-rows").textContent);
  const PER_PAGE = data.per_page;
  const [NAME, SPLIT, GROUP, TRUTH, CALLED, PROBABILITY, DICE, , , , , CELLS, CELLS_PAGE] = data.columns.keys();
  const PICTURES = Object.entries(data.pictures).map(([name, caption]) => [data.columns.indexOf(name), caption]);
  const list = document.getElementById("image-list");
  const search = document.getElementById("image-search");
  const split = document.getElementById("image-split");
  const sort = document.getElementById("image-sort");
  const go = document.getElementById("image-page");
  const choices = [...document.querySelectorAll("#images [data-show]")];
  const heading = document.querySelector("#images h2");
  heading.tabIndex = -1;
  const words = data.rows.map((row) => `${row[NAME]}\n${row[GROUP]}`.toLowerCase());
  const shown = {
    all: () => true,
    wrong: (row) => row[TRUTH] !== null && row[TRUTH] !== row[CALLED],
    healthy: (row) => (row[TRUTH] ?? row[CALLED]) === 0,
    anemic: (row) => (row[TRUTH] ?? row[CALLED]) === 1,
  };
  const GLOBAL = data.heads.length - 1;
  const last = (value) => value ?? Infinity; // what has no figure stands at the end of every order
  const chance = (row) => row[PROBABILITY][GLOBAL];
  const isWrong = (row) => shown.wrong(row) && chance(row) !== null;
  const keys = {
    data: null,
    wrong: (row) => isWrong(row) ? -Math.abs(chance(row) - data.threshold) : Infinity,
    highest: (row) => chance(row) === null ? Infinity : -chance(row),
    lowest: (row) => last(chance(row)),
    dice: (row) => last(row[DICE]),
    name: (row) => row[NAME],
  };
  const collator = new Intl.Collator(undefined, { numeric: true });
  const orders = { data: data.rows.map((_, index) => index) }; // each is made once, when it is first asked for
  const AT_ONCE = 8; // more cards than a screen shows; the others of a page follow when these are painted
  const PAINTED = 40; // milliseconds, more than two frames
  let show = "all", page = 0, found = [], rest = [], timer = 0;

  function order(name) {
    if (!orders[name]) {
      const key = data.rows.map(keys[name]);
      const compare = name === "name" ? (a, b) => collator.compare(key[a], key[b])
        : (a, b) => (key[a] < key[b] ? -1 : key[a] > key[b] ? 1 : 0);
      orders[name] = orders.data.slice().sort((a, b) => compare(a, b) || a - b);
    }
    return orders[name];
  }

  function element(tag, attributes = {}, ...children) {
    const space = ["svg", "rect", "line"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const node = document.createElementNS(space, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children); // append turns strings into text nodes
    return node;
  }

  function picture(row, column, caption) {
    const inside = row[column] === null
      ? element("div", { class: "absent" }, "none")
      : element("a", { href: row[column] },
          element("img", { src: row[column], alt: `${caption} of ${row[NAME]}`, loading: "lazy", decoding: "async" }));
    return element("figure", {}, inside, element("figcaption", {}, caption));
  }

  function outcome(truth, called) {
    if (truth === null) return ["unknown", "?"];
    return truth === called ? ["right", "✓"] : ["wrong", "✗"];
  }

  function bar(probability) {
    const svg = element("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(element("rect", { class: "track", y: 2, width: 100, height: 6, rx: 2 }),
      element("rect", { class: "bar", y: 2, width: 100 * probability, height: 6, rx: 2 }),
      element("line", { class: "half", x1: 50, x2: 50, y1: 0, y2: 10 }));
    return svg;
  }

  function tier(row, title, index) {
    const probability = row[PROBABILITY][index];
    if (probability === null) return element("li", {}, element("span", {}, title), element("span", { class: "missing" }, data.missing[index]));
    const called = index === data.heads.length - 1 ? row[CALLED] : Number(probability > data.threshold);
    const [kind, mark] = outcome(row[TRUTH], called);
    const said = element("span", { class: kind }, `${probability.toFixed(3)} ${data.classes[called]} ${mark}`);
    return element("li", index === data.heads.length - 1 ? { class: "global" } : {},
      element("span", {}, title), element("span", { class: kind }, bar(probability)), said);
  }

  function card(row) {
    const [kind, mark] = outcome(row[TRUTH], row[CALLED]);
    const told = `called ${data.classes[row[CALLED]]}, ` +
      (row[TRUTH] === null ? "truth unknown" : `truly ${data.classes[row[TRUTH]]}`);
    const verdict = { right: "right", wrong: "wrong", unknown: "no label" }[kind];
    const about = element("div", { class: "about" },
      element("h3", {}, element("bdi", {}, row[NAME])),
      element("span", { class: `verdict ${kind}` }, `${mark} ${verdict}`),
      element("p", {}, told), element("p", {}, data.splits[row[SPLIT]] ?? row[SPLIT]),
      element("p", {}, "group ", element("bdi", {}, row[GROUP])));
    if (row[DICE] !== null) about.append(element("p", {}, `Dice ${row[DICE].toFixed(3)}`));
    if (row[CELLS] !== null) {
      about.append(element("p", {}, row[CELLS_PAGE] === null ? row[CELLS] : element("a", { href: row[CELLS_PAGE] }, row[CELLS])));
    }
    const pictures = element("div", { class: "pictures" }, ...PICTURES.map(([column, caption]) => picture(row, column, caption)));
    const tiers = element("ul", { class: "tiers" }, ...data.heads.map((title, index) => tier(row, title, index)));
    return element("article", { class: `image panel ${kind}` }, about, pictures, tiers);
  }

  function fill(many = AT_ONCE, pause = 0) {
    list.append(...rest.splice(0, many).map((index) => card(data.rows[index])));
    list.setAttribute("aria-busy", String(rest.length > 0));
    clearTimeout(timer);
    timer = rest.length ? setTimeout(fill, pause) : 0; // in portions: no key or click waits for a whole page
  }

  function draw(many = AT_ONCE) {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    rest = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
    list.replaceChildren(...(rest.length ? [] : [element("p", { class: "empty panel" }, "No image fits. Clear the search or choose All.")]));
    fill(many, PAINTED);
    const first = found.length ? page * PER_PAGE + 1 : 0;
    go.value = page + 1;
    go.max = pages;
    const range = `${first} to ${Math.min(found.length, (page + 1) * PER_PAGE)} of ${found.length.toLocaleString("en")} ${found.length === 1 ? "image" : "images"}, page ${page + 1} of ${pages}`;
    for (const node of document.querySelectorAll("#images .where")) node.textContent = range;
    for (const node of document.querySelectorAll("#images [data-step='-1']")) node.disabled = page === 0;
    for (const node of document.querySelectorAll("#images [data-step='1']")) node.disabled = page === pages - 1;
  }

  function select(many = AT_ONCE) {
    const wanted = search.value.trim().toLowerCase();
    found = [];
    for (const index of order(sort.value)) {
      const row = data.rows[index];
      const fits = shown[show](row) && (!split.value || row[SPLIT] === split.value);
      if (fits && words[index].includes(wanted)) found.push(index);
    }
    page = 0;
    draw(many);
  }

  for (const button of choices) {
    button.addEventListener("click", () => {
      show = button.dataset.show;
      for (const other of choices) other.setAttribute("aria-pressed", String(other === button));
      select();
    });
  }
  for (const button of document.querySelectorAll("#images [data-step]")) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      draw();
      document.getElementById("images").scrollIntoView();
      if (button.disabled) heading.focus(); // a disabled button would drop the keyboard's place to the page's top
    });
  }
  search.addEventListener("input", () => select());
  split.addEventListener("change", () => select());
  sort.addEventListener("change", () => select());
  addEventListener("beforeprint", () => fill(PER_PAGE));
  go.addEventListener("change", () => {
    page = Math.round(Number(go.value) || 1) - 1;
    draw();
    document.getElementById("images").scrollIntoView();
  });
  document.getElementById("image-tools").hidden = false;
  document.getElementById("image-pages").hidden = false;
  select(PER_PAGE); // whole, so that a link to what stands below leads there
})();
