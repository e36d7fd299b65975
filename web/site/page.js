// site.json -> the page of one model: it loads it, shows what it is, and lets it write.
import { ArtifactError, load } from "./index.js";

const $ = (id) => document.getElementById(id);
const number = (value, digits = 0) =>
  value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

function problem(error) {
  const text =
    error instanceof ArtifactError ? error.message : `This page went wrong: ${error.message}`;
  $("problem").textContent =
    text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
  $("problem").hidden = false;
}

/**
 * The sizes and the quality of the file, as its header says them; whatever is there may be hostile.
 */
function facts({ header, files }, site) {
  const parameters = header.tensors.reduce(
    (sum, [, shape]) => sum + shape.reduce((a, b) => a * b, 1),
    0,
  );
  const bits = header.pack.quality?.bpb_after;
  const rows = [
    ["File", `${number(site.bytes)} bytes`],
    ["Parameters", `${number(parameters)}, ${number((8 * site.bytes) / parameters, 2)} bits each`],
    [
      "Bits per byte",
      typeof bits === "number"
        ? `${number(bits, 4)}, measured on the file by its packer`
        : "not measured",
    ],
    ["Kind", header.family === "golf" ? "golf" : String(header.model.values.model_type)],
    ["Weights", `decoded bit for bit: SHA-256 ${header.weights_sha256.slice(0, 16)}...`],
    ["Runs by", "WebAssembly with SIMD, in float32, on one core"],
  ];
  for (const [name, value] of rows) {
    const term = document.createElement("dt"),
      said = document.createElement("dd");
    term.textContent = name;
    said.textContent = value;
    $("list").append(term, said);
  }
  const own = [...files].find(([name]) => /^(licen[cs]e|copying)/i.test(name));
  $("terms").textContent =
    site.licence ??
    (own ? new TextDecoder().decode(own[1]) : "Neither the file nor this page states a licence.");
  $("facts").hidden = false;
}

async function write(model, site) {
  const text = $("text"),
    status = $("status");
  const options = {
    temperature: Number($("temperature").value),
    tokens: Number($("tokens").value),
    chat: site.chat ?? undefined,
  };
  text.textContent = site.chat ? "" : $("prompt").value;
  $("answer").hidden = false;
  $("problem").hidden = true;
  status.textContent = "Reading the prompt.";
  busy(true);
  let first = 0,
    last = 0,
    before = 0,
    drawn = 0;
  try {
    for await (const { text: piece, tokens } of model.generate($("prompt").value, options)) {
      text.append(piece);
      last = performance.now();
      if (!first) {
        [first, before] = [last, tokens]; // reading the prompt is no part of the pace
        status.textContent = "Writing.";
      }
      drawn = tokens;
      // not in the status, which is read aloud whenever it changes
      if (tokens % 8 === 0) $("pace").textContent = said(drawn, before, last - first);
    }
    status.textContent = `Done: ${said(drawn, before, last - first)}`;
  } catch (error) {
    status.textContent = `Ended: ${said(drawn, before, last - first)}`;
    problem(error);
  }
  $("pace").textContent = "";
  busy(false);
}

function said(drawn, before, milliseconds) {
  const pace =
    milliseconds > 0
      ? `, ${number((1000 * (drawn - before)) / milliseconds, 1)} tokens a second`
      : "";
  return `${number(drawn)} tokens${pace}`;
}

function busy(is) {
  $("text").setAttribute("aria-busy", String(is));
  $("go").disabled = is;
  $("stop").disabled = !is;
}

function stage(name, share, bytes) {
  const total = bytes ? ` (${number(bytes / 1e6, 1)} MB)` : "";
  const text =
    name === "download"
      ? `Downloading the model${total}.`
      : "Decoding the model and checking its hash.";
  if ($("stage").textContent !== text) $("stage").textContent = text;
  $("share").value = share;
}

async function start() {
  const answer = await fetch("site.json", { cache: "no-cache" });
  if (!answer.ok)
    throw new ArtifactError(`site.json cannot be had: the server says ${answer.status}`);
  const site = await answer.json();
  document.title = site.title;
  $("title").textContent = site.title;
  if (site.chat) $("asked").textContent = "Message";
  const model = await load(site.model, {
    tokenizer: site.tokenizer ?? undefined,
    cache: `gptpack ${site.version}`,
    progress: stage,
  });
  $("loading").hidden = true;
  $("form").hidden = false;
  facts(model, site);
  $("tokens").max = String(model.context);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!$("go").disabled) write(model, site);
  });
  $("stop").addEventListener("click", () => model.stop());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("stop").disabled) model.stop();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  $("prompt").focus();
  // from here on it works without a network; where a page may not have that, it works with one
  if (navigator.serviceWorker)
    await navigator.serviceWorker.register(`sw.js?${site.version}`).catch(() => {});
}

start().catch((error) => {
  $("loading").hidden = true;
  problem(error);
});
