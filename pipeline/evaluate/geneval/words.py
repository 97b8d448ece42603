"""Names of COCO's 80 classes as GenEval writes them, as checkpoints write them, and as people do in captions."""

import re
from collections.abc import Iterator

COCO = frozenset(
    """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|bench
    |bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard
    |sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon
    |bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|potted plant|bed|dining table
    |toilet|tv|laptop|computer mouse|tv remote|computer keyboard|cell phone|microwave|oven|toaster|sink|refrigerator|book
    |clock|vase|scissors|teddy bear|hair drier|toothbrush""".replace("\n    ", "").split("|")
)
# Labels of checkpoints that GenEval writes in another way.
LABELS = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "cellphone": "cell phone",
    "hair dryer": "hair drier",
}
PEOPLE = ("man", "woman", "boy", "girl", "child", "kid", "lady", "guy", "men", "women", "people", "children")
# Words of captions that mean a class; what is ambiguous is left out.
MEANINGS = LABELS | {
    **dict.fromkeys(PEOPLE, "person"),
    "bike": "bicycle",
    "plane": "airplane",
    "television": "tv",
    "fridge": "refrigerator",
    "doughnut": "donut",
    "knives": "knife",
    "buses": "bus",
}
AMBIGUOUS = {"orange"}  # a colour more often than a fruit; oranges are fruit
MOST_WORDS = 2  # of a name


def class_of(label: str) -> str:
    """The name that prompts use for a checkpoint's label."""
    return LABELS.get(label.lower(), label.lower())


def named_in(caption: str) -> set[str]:
    """Classes of COCO that a caption names, in singular or plural; of a longer name no part counts by itself."""
    words = re.findall(r"[a-z]+", caption.lower())
    found, start = set(), 0
    while start < len(words):
        length, name = next(_match(words, start), (1, None))
        found |= {name} if name else set()
        start += length
    return found


def _match(words: list[str], start: int) -> Iterator[tuple[int, str]]:
    """Words taken and the class, of the longest match first."""
    for length in range(MOST_WORDS, 0, -1):
        text = " ".join(words[start : start + length])
        if length > len(words) - start or text in AMBIGUOUS:
            continue
        for form in (text, text.removesuffix("s"), text.removesuffix("es")):
            name = MEANINGS.get(form, form)
            if name in COCO:
                yield length, name
                break
