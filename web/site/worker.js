// Messages of client.js -> a model that is loaded and asked, in a thread of its own.
import { ArtifactError } from "./errors.js";
import { open } from "./speak.js";

let speaker, text;

/** What was fetched before, under the cache's name; nothing where a page may not keep it. */
async function opened(cache) {
  return cache && self.caches ? caches.open(cache).catch(() => null) : null;
}

/** The bytes at an address, from `store` if it has them. */
async function get(url, store, progress) {
  const answer = (await store?.match(url)) ?? (await fetch(url, { cache: "no-cache" }));
  if (!answer.ok) throw new ArtifactError(`${url} cannot be had: the server says ${answer.status}`);
  const total = Number(answer.headers.get("content-length")) || 0;
  const chunks = [];
  let size = 0;
  const reader = answer.body.getReader();
  for (
    let part;
    !(part = await reader.read()).done;
    progress(total ? Math.min(size / total, 1) : 0, size)
  ) {
    chunks.push(part.value);
    size += part.value.length;
  }
  const bytes = new Uint8Array(size);
  chunks.reduce((at, chunk) => (bytes.set(chunk, at), at + chunk.length), 0);
  return bytes;
}

/** Keep bytes that turned out to be whole; where there is no room, go on without. */
async function keep(url, store, bytes) {
  if (!store || (await store.match(url))) return;
  const headers = { "content-length": String(bytes.length) };
  await store.put(url, new Response(bytes, { headers })).catch(() => {});
}

const TASKS = {
  async load({ model, tokenizer, cache }) {
    const store = await opened(cache);
    const file = await get(model, store, (share, bytes) =>
      postMessage({ stage: "download", share, bytes }),
    );
    const words = tokenizer ? await get(tokenizer, store, () => {}) : undefined;
    let told = 0;
    const progress = (share) => {
      if (share - told < 0.01) return;
      told = share;
      postMessage({ stage: "decode", share });
    };
    speaker = await open(file, { tokenizer: words, progress });
    postMessage({
      ready: { header: speaker.header, files: speaker.files, context: speaker.model.context },
    });
    await keep(model, store, file);
    if (words) await keep(tokenizer, store, words);
  },

  start({ prompt, options }) {
    text = speaker.generate(prompt, options);
    TASKS.next();
  },

  /** A piece is made when it is asked for, so that whoever stops asking stops the work. */
  next() {
    postMessage({ piece: text.next().value ?? null });
  },
};

onmessage = async ({ data: { task, ...request } }) => {
  try {
    await TASKS[task](request);
  } catch (error) {
    const fault = error instanceof ArtifactError ? "" : "something went wrong in this page: ";
    postMessage({ error: fault + error.message, known: !fault });
  }
};
