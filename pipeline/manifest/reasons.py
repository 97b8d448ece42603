"""Why a stored image is not trained on, in the order in which the reasons are tried: the first that holds is given."""

TAKEN_DOWN, LICENCE = "taken_down", "licence"
TOO_SHORT, TOO_LONG, LEAKED_CAPTION = "caption_too_short", "caption_too_long", "caption_in_evaluation_set"
BELOW_PX, ASPECT_RATIO, SCORE = "below_px", "aspect_ratio", "score"
LEAKED, NEAR_LEAKED = "in_evaluation_set", "near_evaluation_set"
DUPLICATE, NEAR_DUPLICATE, HELD_OUT = "duplicate", "near_duplicate", "held_out"
# Besides, after the licence: why captions wrote no caption, and what made encode's numbers unusable, each by its class.
TEXT, LATENT = "text_{}", "latent_{}"

REASONS = {
    TAKEN_DOWN: "filters.take_down names it, or one it is a copy of",
    LICENCE: "filters.licences does not name its licence",
    TOO_SHORT: "fewer letters than filters.min_caption",
    TOO_LONG: "more letters than filters.max_caption",
    LEAKED_CAPTION: "the evaluation set has the same caption",
    BELOW_PX: "a shorter side below the stage's resolution",
    ASPECT_RATIO: "longer side / shorter side above filters.max_aspect",
    SCORE: "a score outside filters.scores",
    LEAKED: "the same bytes are an image of the evaluation set",
    NEAR_LEAKED: "nearly the same image is in the evaluation set",
    DUPLICATE: "the same bytes came earlier",
    NEAR_DUPLICATE: "nearly the same image came earlier",
    HELD_OUT: "chosen for the validation loss",
}
