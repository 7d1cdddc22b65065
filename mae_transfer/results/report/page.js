"use strict";
(() => {
  const collator = new Intl.Collator("en", { numeric: true });
  const said = document.getElementById("said");

  // a number sorts by data-value, a missing one stands last in either order
  function keyOf(row, column) {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    if (cell.dataset.value !== undefined) return { number: Number(cell.dataset.value), text };
    return { number: null, text: text === "-" ? "" : text };
  }

  function sort(table, column, descending) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => ({ row, key: keyOf(row, column) }));
    const numbers = rows.some((item) => item.key.number !== null);
    const sign = descending ? -1 : 1;
    rows.sort((a, b) => {
      const x = a.key, y = b.key;
      const gone = (key) => (numbers ? key.number === null : key.text === "");
      if (gone(x) || gone(y)) return gone(x) - gone(y);
      return sign * (numbers ? x.number - y.number : collator.compare(x.text, y.text));
    });
    body.append(...rows.map((item) => item.row));
  }

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, descending);
        said.textContent = `sorted by ${head.textContent.trim()}, ${descending ? "descending" : "ascending"}`;
      });
    });
  }

  // a run is shown, in the table and one by one, where all words of the search and all choices fit it
  const form = document.querySelector("form.filter");
  const rows = Array.from(document.querySelectorAll("table.all tbody tr"), (row) => {
    const card = document.getElementById(row.querySelector("a").hash.slice(1));
    const text = [row.textContent, row.dataset.search, card.querySelector("summary").textContent].join(" ");
    return { row, card, text: text.toLowerCase() };
  });

  function narrow() {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = Array.from(form.querySelectorAll("select")).filter((choice) => choice.value);
    let shown = 0;
    for (const { row, card, text } of rows) {
      const fits = words.every((word) => text.includes(word)) &&
        choices.every((choice) => row.getAttribute(`data-${choice.name}`) === choice.value);
      row.hidden = card.hidden = !fits;
      shown += fits;
    }
    for (const task of document.querySelectorAll(".of-task")) task.hidden = !task.querySelector(".run:not([hidden])");
    form.querySelector("output").textContent = `${shown} of ${rows.length} runs`;
  }
  form.hidden = false;
  form.addEventListener("input", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());

  // a link to a run opens it
  function open() {
    const target = document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) {
      if (target.hidden) { form.reset(); narrow(); }
      target.open = true;
      target.scrollIntoView();
      target.querySelector("summary").focus({ preventScroll: true });
    }
  }
  addEventListener("hashchange", open);
  open();
})();
