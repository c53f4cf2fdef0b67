/** Small helpers around the DOM. */

/**
 * An element with properties and children. Strings become text, never markup.
 * @param {string} name
 * @param {object} [properties] as the DOM names them; those with "-" and "role" are attributes
 * @param {...(Node | string | null)} children null is left out
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** One of the icons that index.html holds. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const made = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  made.append(use);
  return made;
}

/** A button that shows an icon and says what it does to those who cannot see it. */
export function iconButton(name, label, onclick) {
  const properties = { type: "button", className: "icon-button", title: label, onclick };
  return element("button", { ...properties, "aria-label": label }, icon(name));
}

/** Copies a text, and says so on the button for a moment. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that did not come over https or from this machine have no clipboard of their own.
    const field = element("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1500);
}

/** A text field as high as its text; the style sheet bounds it. */
export function fitHeight(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
}

/** Whether a key press means "send": Enter alone, and not the end of a composed character. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}
