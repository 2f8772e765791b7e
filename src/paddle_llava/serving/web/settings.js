// What a person sets, kept by the browser; the API key until the tab is closed.
import { label, word } from "./words.js";

const $ = (id) => document.getElementById(id);
const THEMES = ["auto", "light", "dark"];

/** Web storage that may be forbidden, full, or hold anything. */
function read(storage, key) {
  try {
    return storage().getItem(key);
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    if (value) storage().setItem(key, value);
    else storage().removeItem(key);
  } catch {
    // It is as if nothing had been set when the page is loaded again.
  }
}

const lasting = () => localStorage;
const passing = () => sessionStorage;

export const settings = {
  kept: (key) => read(lasting, key),
  keep: (key, value) => write(lasting, key, value),
  get key() {
    return $("api-key").value.trim();
  },
  get systemText() {
    return $("system-text").value.trim();
  },
  /** The fields of a request that say how an answer is drawn. */
  get sampling() {
    return { temperature: Number($("temperature").value), max_tokens: $("max-tokens").valueAsNumber || 512 };
  },
  showTheme() {
    const theme = THEMES.includes(settings.kept("theme")) ? settings.kept("theme") : "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    label($("change-theme"), word(`theme${theme[0].toUpperCase()}${theme.slice(1)}`));
    return theme;
  },
};

/** `onChange` is called when the dialog is closed. */
export function startSettings(onChange) {
  $("temperature").value = settings.kept("temperature") ?? "0.2";
  $("max-tokens").value = settings.kept("max-tokens") ?? "512";
  $("system-text").value = settings.kept("system-text") ?? "";
  $("api-key").value = read(passing, "api-key") ?? "";
  const showTemperature = () => ($("temperature-shown").value = Number($("temperature").value).toFixed(1));
  $("temperature").addEventListener("input", showTemperature);
  showTemperature();
  $("open-settings").addEventListener("click", () => openSettings());
  $("settings-dialog").addEventListener("close", () => {
    for (const id of ["temperature", "max-tokens", "system-text"]) settings.keep(id, $(id).value.trim());
    write(passing, "api-key", settings.key);
    onChange();
  });
  $("change-theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(settings.showTheme()) + 1) % THEMES.length];
    settings.keep("theme", next);
    settings.showTheme();
  });
}

export function openSettings(focused = "temperature") {
  const dialog = $("settings-dialog");
  if (!dialog.open) dialog.showModal();
  $(focused).focus();
}
