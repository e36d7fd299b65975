"""What differs between two packed files -> one sentence, for whoever decides between them."""

from gptpack.inspection.diff import DiffReport


def verdict(report: DiffReport) -> str:
    """Whether B is the better file than A, by its bytes and, as far as they are known, its bits
    per byte."""
    change, percent = report.change_bytes, 100 * report.change_bytes / report.before.file_bytes
    size = f"{abs(change):,} bytes ({abs(percent):.2f} %) {'larger' if change > 0 else 'smaller'}"
    size = size if change else "as large"
    if report.same_weights:
        return f"B has the same weights as A, bit for bit, and is {size}."
    if (known := _scores(report)) is None:
        return (
            f"B has other weights than A and is {size}; which is better is not known, as the files "
            "record no bits per byte of one text: measure them with --bpb, and --data or "
            "--text."
        )
    before, after, how = known
    rise, figures = after - before, f"{before:.6f} and {after:.6f} bits per byte, {how}"
    if not rise:
        return f"B is {size} and as good as A ({figures})."
    worth = f"{size} and {abs(rise):.6f} {'worse' if rise > 0 else 'better'} ({figures})"
    if not change:
        return f"B is {worth}."
    if change * rise > 0:  # larger and worse, or smaller and better
        return f"B is {worth}: {'A' if rise > 0 else 'B'} is the better file."
    return f"B is {worth}: {abs(rise / percent):.6f} bits per byte for each percent of A's bytes."


def _scores(report: DiffReport) -> tuple[float, float, str] | None:
    """Bits per byte of A and B on one text, and where they are from."""
    if report.measured is not None:
        before, after = report.measured
        return before.bpb, after.bpb, f"measured, {after.metric}"
    first, second = (side.record.quality.bpb_after for side in (report.before, report.after))
    if report.change_bpb is None or first is None or second is None:
        return None
    return first, second, "recorded"
