// What every client is asked for, and how its program reports what it got: as a line of JSON, for
// each API and check, either what the client made of the answer, or the classes of the error.
import { basename } from "node:path";

const program = basename(process.argv[1]);
export const address = `${process.argv[2]}/v1`;
export const model = "gpt-oss-20b";
export const weather = "It rains.";
export const again = "Again. !call get_time"; // what the user says in a second turn
const call = "!call get_weather";
const words = {
  tools: call,
  tools_streamed: call,
  encrypted: call,
  history: call,
  preamble: `${call} !preamble`,
  undeclared: "!builtin",
  structured: "!answer",
  too_long: "much ".repeat(140_000),
};

const classes = (error) => {
  const found = [];
  for (let each = error; each && each !== Object.prototype; each = Object.getPrototypeOf(each)) {
    found.push(each.constructor.name);
  }
  return [...new Set([error.name, ...found])];
};

export class Report {
  constructor() {
    this.found = {};
  }

  // Run a function of the user's text, whose result is reported.
  async check(api, name, run) {
    try {
      const text = `${program}/${api}/${name}: ${words[name] ?? ""}`;
      this.found[`${api}/${name}`] = await run(text);
    } catch (error) {
      const said = { error: classes(error), says: String(error.message).slice(0, 500) };
      const code = error.code ?? error.data?.error?.code;
      this.found[`${api}/${name}`] = code === undefined ? said : { ...said, code };
    }
  }

  print() {
    console.log(JSON.stringify(this.found));
  }
}
