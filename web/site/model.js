// A decoded file -> the model in it, ready to run; logits -> a token.
import { ArtifactError, short } from "./errors.js";
import { Golf } from "./golf.js";
import { Llama, LLAMAS } from "./llama.js";

/**
 * The model of what `decode` returned; it computes in the memory that holds the weights.
 *
 * @throws {ArtifactError} the file's tensors are not those of its model, or this code cannot run
 *     it.
 */
export function openModel(decoded) {
  const { family, model } = decoded.header;
  if (family === "golf") return new Golf(decoded);
  if (family === "module")
    throw new ArtifactError(
      "the file holds a module of its author's own code, which no page can run",
    );
  const type = model.values.model_type;
  if (LLAMAS.includes(type)) return new Llama(decoded);
  throw new ArtifactError(
    `the file's model is of type ${short(type)}; this page runs golf and ${LLAMAS.join(", ")}`,
  );
}

/** The likeliest token at temperature 0, which is the first of equals, and else one drawn. */
export function pick(logits, temperature, random = Math.random) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  if (!temperature) return best;
  const weights = Array.from(logits, (logit) => Math.exp((logit - logits[best]) / temperature));
  let left = random() * weights.reduce((a, b) => a + b, 0);
  const drawn = weights.findIndex((weight) => (left -= weight) < 0);
  return drawn < 0 ? best : drawn;
}
