/** What is kept in the browser. Storage may be forbidden or full: then nothing is kept. */

/**
 * @param {"localStorage" | "sessionStorage"} where
 * @param {string} name
 * @returns {any} what was kept, or null
 */
export function recall(where, name) {
  try {
    return JSON.parse(window[where].getItem(`gptoss.${name}`));
  } catch {
    return null;
  }
}

/**
 * @param {any} value to keep; null: nothing, what was kept is forgotten
 * @returns {boolean} whether that was possible
 */
export function keep(where, name, value) {
  try {
    window[where].removeItem(`gptoss.${name}`);
    if (value !== null) window[where].setItem(`gptoss.${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
