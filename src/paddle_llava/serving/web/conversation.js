// What was said so far. It outlives a reload of the page, and goes when the tab is closed.
//
// An exchange is { text, pictures, answer, boxes, reason, error, figures }: what the person asked with which pictures,
// and the model's answer with what became of it. `reason` is null while it is coming, then "stop", "length", "stopped"
// (by the person) or "failed".

const STORED = "conversation";

export class Conversation {
  exchanges = [];

  /** As it was before the page was loaded anew. */
  static restored() {
    const conversation = new Conversation();
    try {
      conversation.exchanges = JSON.parse(sessionStorage.getItem(STORED)) ?? [];
    } catch {
      conversation.exchanges = [];
    }
    for (const exchange of conversation.exchanges) exchange.reason ??= "stopped";
    return conversation;
  }

  keep() {
    try {
      sessionStorage.setItem(STORED, JSON.stringify(this.exchanges));
    } catch {
      try {
        sessionStorage.removeItem(STORED); // too many pictures: better none than an old one
      } catch {
        // A browser that keeps nothing.
      }
    }
  }

  get last() {
    return this.exchanges.at(-1);
  }

  /**
   * Put a question. One that has no answer yet makes way for it, and its pictures go along: so a question that failed
   * costs nothing.
   */
  ask(text, pictures) {
    let waiting = [];
    if (this.last && !this.last.answer) waiting = this.exchanges.pop().pictures;
    const exchange = { text, pictures: [...waiting, ...pictures], ...unanswered() };
    this.exchanges.push(exchange);
    return exchange;
  }

  /** Whether an exchange has come to its end without a word of an answer. */
  isWithoutAnswer({ answer, reason }) {
    return reason !== null && !answer;
  }

  /** Forget the answers from exchange `number` on, and what was asked after it, which is asked as `text`. */
  again(number, text = this.exchanges[number].text) {
    const { pictures } = this.exchanges[number];
    this.exchanges.length = number;
    this.exchanges.push({ text, pictures, ...unanswered() });
    return this.last;
  }

  clear() {
    this.exchanges = [];
  }

  /** The picture that the answer of exchange `number` is about: the one shown last before it. */
  pictureOf(number) {
    return this.exchanges.slice(0, number + 1).flatMap((exchange) => exchange.pictures).at(-1);
  }

  /** The messages of OpenAI's API, without the answer to the last question. */
  messages(systemText) {
    const told = systemText ? [{ role: "system", content: systemText }] : [];
    for (const { text, pictures, answer } of this.exchanges) {
      const shown = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
      told.push({ role: "user", content: shown.length ? [...shown, { type: "text", text }] : text });
      told.push({ role: "assistant", content: answer });
    }
    told.pop();
    return told;
  }
}

function unanswered() {
  return { answer: "", boxes: [], reason: null, error: null, figures: null };
}
