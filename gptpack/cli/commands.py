"""The commands by what they are for, and what `gptpack` says of itself."""

SECTIONS = {
    "Make a file": {
        "pack": "Pack a checkpoint or a Hugging Face folder into one file under a byte budget.",
        "train": "Train a model by a recipe and write a checkpoint.",
        "data": "Turn text into tokens: tokenizers, shards, downloads.",
        "demo": "Train, pack and prove a small model on text that every machine has.",
    },
    "Use it": {
        "sample": "Let a packed model go on from a prompt.",
        "unpack": "Write a packed model for others: a Hugging Face folder, safetensors, GGUF.",
        "web": "Make a static page in which a packed model runs in the browser.",
    },
    "Prove it": {
        "eval": "Reload a packed file and measure its bits per byte.",
        "check": "Hold packed files to limits on bytes and bits per byte, in CI.",
        "verify": "Verify every checksum of a packed file and decode all of it.",
    },
    "Look into it": {
        "inspect": "Show what a packed file holds, from its header.",
        "diff": "Show what differs between two packed files.",
        "report": "Make one HTML page about runs and packed files.",
    },
    "Contests": {
        "stats": "Test whether runs beat a threshold by more than chance.",
        "log": "Read a reference-style training log and check it.",
        "submission": "Make a contest submission out of runs, or check one.",
    },
    "This machine": {
        "doctor": "Show what this machine can do, and what is missing for what.",
        "completion": "Print a shell's completion script.",
    },
}
COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}

FIRST = """\
gptpack turns a small language model into one file under a byte budget, and proves how good it is.

  gptpack pack ./SmolLM2-135M --budget 50MB --text train.txt --eval-text val.txt
  gptpack sample SmolLM2-135M.gptpack --prompt "Why is the sky blue?"
  gptpack check SmolLM2-135M.gptpack --budget 50MB
  gptpack demo

The last one does it all in some minutes, with text of this machine. All commands: gptpack --help
"""
"""What `gptpack` says that is called with nothing."""

EPILOG = """\
\b
Exit statuses:
  0    all held
  1    over a budget, worse than a limit, or training broke down
  2    usage, configuration, data or checkpoint
  3    a packed file is corrupt or hostile
  4    the environment lacks something that was asked for, or memory
  70   a bug of gptpack, to be reported
  130  interrupted
  141  nobody reads the output any more
  143  terminated

\b
Environment:
  NO_COLOR             no colours and no styles
  GITHUB_STEP_SUMMARY  check appends its report to this file
  GITHUB_ACTIONS       where this is true, check annotates what failed

Every command takes --help, most take --json. Tutorials, conventions and the file format are in the
folder docs of the project.
"""
"""What `gptpack --help` ends with."""
