// Shows of the gallery what the reader asks for: right or wrong answers, of one type, that hold some text.
const cards = [...document.querySelectorAll("article")];
const buttons = [...document.querySelectorAll("button[data-show]")];
const type = document.querySelector("#type");
const search = document.querySelector("#search");
let shown = "all";

function filter() {
  const wanted = search.value.trim().toLowerCase();
  let count = 0;
  for (const card of cards) {
    const fits = (shown === "all" || card.dataset.answer === shown)
      && (!type || !type.value || card.dataset.type === type.value)
      && card.textContent.toLowerCase().includes(wanted);
    card.hidden = !fits;
    count += fits;
  }
  for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.show === shown);
  document.querySelector("#count").value = `${count} of ${cards.length}`;
}

for (const button of buttons) button.addEventListener("click", () => { shown = button.dataset.show; filter(); });
type?.addEventListener("change", filter);
search.addEventListener("input", filter);
filter();
