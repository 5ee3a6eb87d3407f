"use strict";
// Sends dropped images one after the other and shows the answers. All that comes from outside is set as text.
(() => {
  const drop = document.getElementById("drop");
  const files = document.getElementById("files");
  const answers = document.getElementById("answers");
  const mostBytes = Number(drop.dataset.bytes);
  const pending = [];
  let busy = false;

  const made = (tag, cls, ...content) => {
    const element = document.createElement(tag);
    if (cls) element.className = cls;
    element.append(...content.filter((part) => part !== null && part !== undefined));
    return element;
  };
  const three = (value) => (typeof value === "number" ? value.toFixed(3) : "\u2014");

  function take(list) {
    for (const file of list) {
      const state = made("span", "state", "waiting");
      const card = made("article", "panel answer", made("header", "", made("h2", "", file.name || "image"), state));
      answers.prepend(card);
      if (file.size > mostBytes) {
        fail(card, { error: `the file is larger than ${Math.floor(mostBytes / 1e6)} MB` });
      } else if (file.size === 0) {
        fail(card, { error: "the file is empty, or a folder" });
      } else {
        pending.push({ file, card, state });
      }
    }
    work();
  }

  async function work() {
    if (busy) return;
    busy = true;
    while (pending.length) {
      const job = pending.shift();
      job.state.replaceChildren(made("span", "spin"), "judging");
      const watching = setInterval(() => watch(job.state), 2000);
      try {
        await send(job);
      } catch {
        fail(job.card, { error: "the programme does not answer", remedy: "is it still running in its terminal?" });
      } finally {
        clearInterval(watching);
      }
    }
    busy = false;
  }

  async function watch(state) {
    try {
      const { waiting } = await (await fetch("/waiting")).json();
      const before = waiting > 1 ? `judging; ${waiting} images are on their way` : "judging";
      state.replaceChildren(made("span", "spin"), before);
    } catch { /* the upload itself says what is wrong */ }
  }

  async function send(job) {
    for (;;) {
      const headers = { "Content-Type": "application/octet-stream" };
      const reply = await fetch("/judge", { method: "POST", headers, body: job.file });
      if (reply.status === 503) {
        job.state.replaceChildren(made("span", "spin"), "waiting: many images are being judged");
        await new Promise((done) => setTimeout(done, 2000));
        continue;
      }
      const said = await reply.json();
      if (reply.ok) show(job.card, said);
      else fail(job.card, said);
      return;
    }
  }

  function fail(card, said) {
    card.classList.add("failed");
    card.querySelector(".state").replaceChildren(said.error);
    const rows = ["expected", "found", "remedy"].filter((key) => said[key]);
    const list = made("dl", "plain");
    for (const key of rows) list.append(made("dt", "", key), made("dd", "", said[key]));
    if (rows.length) card.append(list);
  }

  function meter(share, far, half) {
    const bar = made("i");
    bar.style.width = `${Math.min(100, Math.max(0, 100 * share))}%`;
    return made("span", far ? "meter far" : "meter", bar, half ? made("u") : null);
  }

  // One picture is large; the others choose it.
  function pictures(list) {
    const shown = made("img");
    const caption = made("figcaption");
    const choices = made("div", "choices");
    const choose = (one, button) => {
      [shown.src, shown.alt, caption.textContent] = [one.address, one.caption, one.note];
      for (const other of choices.children) other.setAttribute("aria-pressed", String(other === button));
    };
    for (const one of list) {
      const button = made("button", "", one.caption);
      button.type = "button";
      button.addEventListener("click", () => choose(one, button));
      choices.append(button);
    }
    choose(list[list.length - 1], choices.lastChild);
    return made("div", "shown", choices, made("figure", "", shown, caption));
  }

  function show(card, said) {
    card.classList.add(said.verdict.toLowerCase());
    card.querySelector(".state").replaceWith(
      made("span", `verdict ${said.verdict.toLowerCase()}`, said.verdict),
      made("span", "state", `probability of Anemic ${three(said.probability)}, ${said.size}, ${said.seconds.toFixed(1)} s`),
    );
    const warnings = made("ul", "warnings");
    for (const text of said.warnings) warnings.append(made("li", "notice strong", text));
    if (said.warnings.length) card.append(warnings);
    card.append(made("div", "said", pictures(said.pictures), made("div", "", ...tiers(said), ...cells(said), ...novelty(said))));
  }

  function tiers(said) {
    const list = made("ul", "meters tiers-said");
    for (const tier of said.tiers) {
      const known = typeof tier.probability === "number";
      list.append(made("li", tier.name === "Global" ? "global" : "", made("span", "", tier.name),
        known ? meter(tier.probability, false, true) : made("span"),
        made("span", "", known ? `${three(tier.probability)} ${tier.called}` : "not opened")));
    }
    const spread = typeof said.spread === "number" ? made("p", "footnote", `The runs differ by ${three(said.spread)}.`) : null;
    return [made("h3", "", "Verdict by tier"), list, spread];
  }

  function cells(said) {
    if (!said.cells) return [];
    const list = made("dl", "plain cells-said");
    for (const [name, text] of said.cells) list.append(made("dt", "", name), made("dd", "", text));
    return [made("h3", "", "Cells"), list];
  }

  function novelty(said) {
    if (!said.novelty) return [made("h3", "", "Novelty"), made("p", "footnote", "Nothing is kept of the training images: whether this one is unlike them is not known.")];
    const list = made("ul", "meters novelty-said");
    for (const [name, value] of said.novelty) {
      const known = typeof value === "number";
      list.append(made("li", "", made("span", "", name), known ? meter(value / 2, value > 1, true) : made("span"),
        made("span", "", known ? `${value.toFixed(2)} of limit` : "not known")));
    }
    return [made("h3", "", "Unlike the training images"), list];
  }

  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files);
  });
  files.addEventListener("change", () => { take([...files.files]); files.value = ""; });
})();
