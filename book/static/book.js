/* What a page does by itself; without this script everything is readable. */

/* A docstring shows its first line, and the rest when asked for. */
function foldDocstrings() {
  for (const block of document.querySelectorAll(".cell_input pre")) {
    let rest = [];
    const fold = () => {
      if (rest.length > 1) hide(rest);
      rest = [];
    };
    for (const node of [...block.childNodes]) {
      // Pygments marks each line of a docstring; between them is white space
      const part = node.nodeType == Node.ELEMENT_NODE
        ? node.classList.contains("sd") : rest.length && !node.data.trim();
      if (part) rest.push(node);
      else if (rest.length) fold();
    }
    fold();
  }
}

function hide(nodes) {
  while (nodes.at(-1).nodeType == Node.TEXT_NODE) nodes.pop();
  const lines = nodes.filter(node => node.nodeType == Node.ELEMENT_NODE);
  if (lines.length < 4) return;
  const body = document.createElement("span");
  const [first, ...others] = nodes;
  others[0].before(body);
  body.append(...others);
  const button = document.createElement("button");
  button.className = "docstring-toggle";
  button.type = "button";
  const show = open => {
    body.hidden = !open;
    button.textContent = open ? "less" : "…";
    button.ariaExpanded = open;
    button.ariaLabel = open ? "less of the docstring" : "rest of the docstring";
  };
  button.addEventListener("click", () => show(body.hidden));
  first.after(" ", button);
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
    const part = anchor && article?.querySelector(anchor);
    return (part || article)?.textContent ?? "";
  };
}

foldDocstrings();
showActiveChapter();
printInBlack();
quoteArticles();
