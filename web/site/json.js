// The bytes of a header -> its values, if they are JSON in the one spelling that the format allows.
import { ArtifactError } from "./errors.js";

const LARGEST_DEPTH = 32;
const ESCAPES = { '"': '"', "\\": "\\", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" };

/**
 * Parse canonical JSON (docs/format.md, "Header").
 *
 * A number written as a float is a Number object where it has a whole value, so that
 * Number.isInteger tells 2.0 from 2, and an integer beyond 2^53 is a BigInt. `plain` undoes both.
 */
export function parseCanonical(text) {
  let at = 0;

  function wrong(why) {
    throw new ArtifactError(`the header is not canonical JSON at byte ${at}: ${why}`);
  }

  function expect(word) {
    if (!text.startsWith(word, at)) wrong(`'${word}' must stand here`);
    at += word.length;
  }

  function value(depth) {
    if (depth > LARGEST_DEPTH) wrong(`it is nested more than ${LARGEST_DEPTH} deep`);
    switch (text[at]) {
      case "{":
        return object(depth);
      case "[":
        return list(depth);
      case '"':
        return string();
      case "t":
        return (expect("true"), true);
      case "f":
        return (expect("false"), false);
      case "n":
        return (expect("null"), null);
      default:
        return number();
    }
  }

  function object(depth) {
    const found = Object.create(null);
    let last = null;
    at++;
    while (text[at] !== "}") {
      if (last !== null) expect(",");
      if (text[at] !== '"') wrong("a key must stand here");
      const key = string();
      if (last !== null && !comesBefore(last, key))
        wrong("keys are not sorted, or one is repeated");
      expect(":");
      found[key] = value(depth + 1);
      last = key;
    }
    at++;
    return found;
  }

  function list(depth) {
    const found = [];
    at++;
    while (text[at] !== "]") {
      if (found.length) expect(",");
      found.push(value(depth + 1));
    }
    at++;
    return found;
  }

  function string() {
    let found = "";
    for (at++; text[at] !== '"'; at++) {
      const c = text[at];
      if (c === undefined || c < " " || c > "~") wrong("a character must be escaped");
      if (c !== "\\") {
        found += c;
        continue;
      }
      const e = text[++at];
      if (e !== "u") {
        if (!(e in ESCAPES)) wrong("an escape of no meaning");
        found += ESCAPES[e];
        continue;
      }
      const digits = text.slice(at + 1, at + 5);
      const code = parseInt(digits, 16);
      const character = String.fromCharCode(code);
      // what has a shorter spelling must have it
      if (
        !/^[0-9a-f]{4}$/.test(digits) ||
        (code > 31 && code < 127) ||
        "\b\f\n\r\t".includes(character)
      ) {
        wrong("an escape that is not the shortest");
      }
      found += character;
      at += 4;
    }
    at++;
    return found;
  }

  function number() {
    const rule = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?(e[+-][0-9]+)?/y;
    rule.lastIndex = at;
    const match = rule.exec(text);
    if (!match) wrong("a value must stand here");
    const [word, fraction, exponent] = match;
    if (word === "-0") wrong("-0 is 0");
    const found = Number(word);
    if (fraction || exponent) {
      if (!Number.isFinite(found) || asPython(found) !== word)
        wrong("a number that is not the shortest");
      at += word.length;
      return Number.isInteger(found) ? new Number(found) : found;
    }
    at += word.length;
    return Number.isSafeInteger(found) ? found : BigInt(word);
  }

  const found = value(1);
  if (at !== text.length) wrong("something follows its end");
  return found;
}

/** Whether `a` sorts before `b` by code point. */
function comesBefore(a, b) {
  const x = [...a],
    y = [...b];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    if (x[i] !== y[i]) return x[i].codePointAt(0) < y[i].codePointAt(0);
  }
  return x.length < y.length;
}

/**
 * A double as Python's repr writes it: the digits are the same shortest ones, their form is not.
 */
function asPython(value) {
  const [mantissa, power] = value.toExponential().split("e");
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    const sign = exponent < 0 ? "-" : "+";
    return `${mantissa}e${sign}${String(Math.abs(exponent)).padStart(2, "0")}`;
  }
  const digits = mantissa.replace("-", "").replace(".", "");
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  return `${sign}${whole}.${digits.slice(exponent + 1) || "0"}`;
}

/** Values of `parseCanonical` with ordinary numbers, which for integers beyond 2^53 are inexact. */
export function plain(value) {
  if (value instanceof Number || typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  // made from entries, so that a key such as __proto__ is a key
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}
