"""The result of a run, or the plan of one, as the rows of a table."""

from typing import Any

from gptpack.jobs.train import TrainResult


def result_rows(result: TrainResult) -> list[list[str]]:
    """The rows of a result."""
    loss = f"{result.loss_nats:.4f}" if result.loss_nats is not None else "none: no step was left"
    rows = [
        ["parameters", f"{result.parameters:,}"],
        ["steps", f"{result.steps:,} x {1000 * result.seconds / max(result.steps, 1):.1f} ms"],
        ["tokens", f"{result.tokens:,}"],
        ["training seconds", f"{result.seconds:.1f}"],
        ["compile seconds", f"{result.compile_seconds:.1f} (outside the clock)"],
        ["attention", result.attention],
        ["kernels", result.kernels],
        ["weights in the checkpoint", result.weights],
        ["training loss, nats", loss],
    ]
    if result.predicted_bytes is not None:
        rows += [
            ["seconds of looks at the packer", f"{result.look_seconds:.1f} (in the clock)"],
            ["predicted file, bytes", f"{result.predicted_bytes:,}"],
            ["  when packed with --delta", f"{result.packing_delta:.6g}"],
        ]
    if result.peak_memory_bytes:
        rows.append(["peak memory, GB", f"{result.peak_memory_bytes / 1e9:.2f}"])
    if result.validation is not None:
        rows.append(["validation bpb", f"{result.validation.plain.bpb:.5f}"])
    return rows


def plan_rows(result: dict[str, Any]) -> list[list[str]]:
    """The rows of a plan."""
    needs = result["memory"]
    table = [
        ["parameters", f"{result['parameters']:,}"],
        ["of them on a grid when packed", f"{result['coded_parameters']:,}"],
        ["MFLOP a token, forward and backward", f"{result['flops_per_token'] / 1e6:.1f}"],
    ]
    for part in ("weights", "gradients", "optimizer", "average", "activations", "total"):
        label = {
            "average": "averaged weights",
            "activations": f"activations of {result['micro_batch_tokens']:,} tokens, at most",
            "optimizer": "optimizer state",
        }.get(part, part)
        table.append([f"memory, GB: {label}", f"{needs[f'{part}_bytes'] / 1e9:.3f}"])
    limit = f"{result['training_seconds']:g}" if result["training_seconds"] else "no limit"
    table += [
        ["tokens a step", f"{result['batch_tokens']:,}"],
        ["milliseconds a step", f"{1000 * result['seconds_per_step']:.1f}"],
        ["  from", result["seconds_source"]],
        ["training seconds", limit],
    ]
    if result["reserve_seconds"]:
        table.append(["seconds kept for packing", f"{result['reserve_seconds']:g}"])
    if result["looks"]:
        each = result["seconds_per_look"]
        told = "seconds not known, not counted" if each is None else f"of {each:.1f} s"
        table.append(["looks at the packer, in the clock", f"{result['looks']}, {told}"])
    table += [["steps", f"{result['steps']:,}"], ["tokens", f"{result['tokens']:,}"]]
    if result["epochs"] is not None:
        table.append([f"epochs of the data, {result['loader']}", f"{result['epochs']:.3f}"])
    if result["budget_bytes"] is not None:
        table.append(["budget, bytes", f"{result['budget_bytes']:,}"])
    table += [
        ["bits a weight", f"{result['bits_per_weight']:.3f}"],
        ["expected file, bytes", f"{result['artifact_bytes']:,}"],
    ]
    return table
