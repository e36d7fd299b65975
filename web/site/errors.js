// What is thrown for a file that is damaged, hostile, or of a model that this page cannot run.

/** A file or a model that cannot be opened; its message is one sentence for people. */
export class ArtifactError extends Error {
  name = "ArtifactError";
}

/** The start of a value of the file, in printable ASCII: it may be anything. */
export function short(value) {
  const text =
    JSON.stringify(value, (_, v) => (typeof v === "bigint" ? String(v) : v)) ?? String(value);
  return text
    .replace(/[^ -~]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`)
    .slice(0, 60);
}
