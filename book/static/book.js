/* What a page does by itself; without this script everything is readable. */

/* A docstring shows its first line, and the rest when asked for; so do the
   methods that a cell's `#| fold-bodies` names (dressing.py makes a class of
   each name). */
function foldCode() {
  for (const block of document.querySelectorAll(".cell_input pre")) {
    const lines = linesOf(block);
    for (const kept of block.closest(".cell").classList)
      if (kept.startsWith("tag_fold-")) foldMethod(lines, kept.slice(9));
    for (let i = 0; i < lines.length; i++) {
      const end = endOfDocstring(lines, i);
      if (end > i + 2) fold(lines.slice(i, end), "docstring");
      i = Math.max(i, end - 1);
    }
  }
}

/* The lines of a block: what each says, and the nodes that it is made of. */
function linesOf(block) {
  const lines = [{text: "", nodes: []}];
  for (const node of [...block.childNodes]) {
    if (node.nodeType != Node.TEXT_NODE) {
      lines.at(-1).text += node.textContent;
      lines.at(-1).nodes.push(node);
      continue;
    }
    const parts = node.data.split(/(?<=\n)/).map(
      part => document.createTextNode(part));
    node.replaceWith(...parts);
    for (const part of parts) {
      lines.at(-1).text += part.data;
      lines.at(-1).nodes.push(part);
      if (part.data.endsWith("\n")) lines.push({text: "", nodes: []});
    }
  }
  return lines;
}

/* Behind the last line of the docstring that begins at `start`, or `start`.
   Pygments marks each line of it. */
function endOfDocstring(lines, start) {
  let end = start;
  while (end < lines.length && (lines[end].nodes.some(
    node => node.classList?.contains("sd"))
    || (end > start && !lines[end].text.trim()))) end++;
  while (end > start && !lines[end - 1].text.trim()) end--;
  return end;
}

const indent = line => line.text.search(/\S/);

function foldMethod(lines, name) {
  const start = lines.findIndex(
    line => line.text.trim().startsWith(`def ${name}(`));
  if (start < 0) return;
  let first = start;  // of several lines, where the signature ends
  while (!/:\s*(#.*)?$/.test(lines[first].text)) first++;
  let end = first + 1;
  while (end < lines.length
    && (!lines[end].text.trim() || indent(lines[end]) > indent(lines[start])))
    end++;
  while (!lines[end - 1].text.trim()) end--;
  if (endOfDocstring(lines, first + 1) > first + 1) first++;
  if (end > first + 1) fold(lines.slice(first, end), name);
}

/* Hide all but the first of these lines behind a button at its end. */
function fold([first, ...others], name) {
  const nodes = others.flatMap(line => line.nodes);
  if (!nodes.length || nodes[0].parentElement.matches(".folded")) return;
  const body = document.createElement("span");
  body.className = "folded";
  nodes[0].before(body);
  body.append(...nodes);
  const button = document.createElement("button");
  button.className = "unfold";
  button.type = "button";
  const show = open => {
    body.hidden = !open;
    button.textContent = open ? "less" : "…";
    button.ariaExpanded = open;
    button.ariaLabel = `${open ? "less" : "…"} of ${name}`;
  };
  button.addEventListener("click", () => show(body.hidden));
  first.nodes.at(-1).before(" ", button);
  show(false);
}

/* The chapter that is read is in sight in the list of chapters. */
function showActiveChapter() {
  const list = document.querySelector("#pst-primary-sidebar");
  const active = list?.querySelector("li.current.active a");
  if (!active) return;
  const place = active.getBoundingClientRect();
  const frame = list.getBoundingClientRect();
  if (place.top < frame.top || place.bottom > frame.bottom)
    list.scrollTop += place.top - frame.top - frame.height / 3;
}

/* Paper is white, whatever the theme. */
function printInBlack() {
  const page = document.documentElement.dataset;
  let theme;
  addEventListener("beforeprint", () => {
    theme = page.theme;
    page.theme = "light";
  });
  addEventListener("afterprint", () => { page.theme = theme; });
}

/* The search quotes the text of a page, without the frame around it. */
function quoteArticles() {
  if (typeof Search == "undefined") return;
  Search.htmlToText = (source, anchor) => {
    const page = new DOMParser().parseFromString(source, "text/html");
    page.querySelectorAll(".headerlink, script, style").forEach(
      part => part.remove());
    const article = page.querySelector("article");
    const place = anchor ? article?.querySelector(anchor) : null;
    // the place of a term is empty, and stands in front of it
    const part = place?.textContent.trim() ? place : place?.parentElement;
    return (part || article)?.textContent ?? "";
  };
}

/* The arrow in the list of chapters says what it opens. */
function nameArrows() {
  for (const arrow of document.querySelectorAll("summary:has(.toctree-toggle)"))
    arrow.ariaLabel = "pages of " + arrow.closest("li").querySelector("a").text;
}

foldCode();
addEventListener("load", showActiveChapter);  // behind the theme's own scroll
nameArrows();
printInBlack();
quoteArticles();
