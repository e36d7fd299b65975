"""What a folder of shards holds -> an aligned table, and notes on what is odd."""

from typing import Any

from gptpack.cli.console import note, print_table
from gptpack.jobs.data import GPT2_RANKS


def print_found(found: dict[str, Any]) -> None:
    """A folder's splits by its manifest, or its shards if it has none."""
    if found.get("overlap", {}).get("documents"):
        shared = found["overlap"]
        note(
            f"{shared['documents']:,} of {shared['val_documents']:,} documents of val, "
            f"{shared['tokens'] / shared['val_tokens']:.2%} of its tokens, are in train as well"
        )
    if "shards" in found:
        rows = [[shard["file"], f"{shard['tokens']:,}"] for shard in found["shards"]]
        print_table(["shard", "tokens"], rows, title=f"{found['directory']}: no manifest.json")
        return
    counts = ("documents", "tokens", "text_bytes", "accounted_bytes", "unknown_tokens")
    splits = {name: found[name] for name in ("train", "val")}
    rows = [
        [name, *(f"{split[count]:,}" for count in counts), f"{len(split['shards']):,}"]
        for name, split in splits.items()
    ]
    print_table(
        ["split", "documents", "tokens", "text bytes", "token bytes", "unknown tokens", "shards"],
        rows,
        title=f"{found['directory']}: {found['name']}, {found['tokenizer']['vocab']:,} pieces "
        f"({found['tokenizer']['name']}); {found['split_rule']}",
    )
    tokenizer = found["tokenizer"]
    if tokenizer["pattern"] and tokenizer["sha256"] != GPT2_RANKS:
        note("text was cut by GPT-2's expression, but these ranks are not GPT-2's")
    for name, split in splits.items():
        lines = not any(".jsonl" in source["name"] for source in split["sources"])
        if split["documents"] == 1 and (lines or name == "val"):
            note(
                f"{name} is one document: if the text has more, name what stands between them with "
                "--separator, such as '\\n\\n'"
            )
    if unknown := sum(split["unknown_tokens"] for split in splits.values()):
        note(
            f"{unknown:,} tokens are unknown pieces and count 0 bytes: the tokenizer has no byte "
            "fallback, and bits per byte leaves the text behind them out"
        )
