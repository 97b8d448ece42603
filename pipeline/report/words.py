"""Numbers as people read them."""


def duration(seconds: float) -> str:
    """42 s, 6.4 min, 3.2 h, 2.6 days."""
    for least, size, unit in ((172_800, 86_400, "days"), (5_400, 3_600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def dollars(amount: float) -> str:
    """$0.0031, $0.42, $1,890: cents, or two digits of less than ten of them."""
    if amount and amount < 0.1:
        return f"${amount:.2g}" if amount >= 1e-4 else "under $0.0001"
    return f"${amount:,.2f}" if amount < 100 else f"${amount:,.0f}"


def size(number: float) -> str:
    """1.2 TB, 44 GB, 5.1 MB, of bytes; 10^3 a step."""
    for least, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= least:
            return f"{number / least:.3g} {unit}"
    return f"{number:.0f} B"


def count(number: float) -> str:
    """1,512 stays; from ten thousand on 64.0k, 1.5M, 1.2B."""
    for least, size, letter in ((999.5e6, 1e9, "B"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= least:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


def score(value: float) -> str:
    """Three digits: 1520, 152, 8.31, 0.612, 0.0031; fewer where more would be noise."""
    if abs(value) < 0.01:
        return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) >= 5e-5 else "0"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def listed(names: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else "nothing"
