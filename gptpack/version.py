"""The version of the package; the artifact format has its own, in `gptpack.artifact.layout`."""

VERSION = "0.1.0"
