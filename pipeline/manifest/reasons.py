"""Why a stored image is not trained on, in the order in which the reasons are tried: the first that holds is given."""

TAKEN_DOWN, LICENCE = "taken_down", "licence"
TOO_SHORT, TOO_LONG, LEAKED_CAPTION = "caption_too_short", "caption_too_long", "caption_in_evaluation_set"
ASPECT_RATIO, SCORE = "aspect_ratio", "score"
LEAKED, NEAR_LEAKED = "in_evaluation_set", "near_evaluation_set"
DUPLICATE, NEAR_DUPLICATE = "duplicate", "near_duplicate"
BELOW_PX, HELD_OUT = "below_px", "held_out"  # behind copies, so that the same one of them stays at every resolution
# Besides, what made encode's numbers unusable, each by its class, and why captions wrote no caption: for captions and text
# after the licence, for latents before below_px.
TEXT, LATENT = "text_{}", "latent_{}"

REASONS = {
    TAKEN_DOWN: "filters.take_down names it, or one it is a copy of",
    LICENCE: "filters.licences does not name its licence",
    TOO_SHORT: "fewer letters than filters.min_caption",
    TOO_LONG: "more letters than filters.max_caption",
    LEAKED_CAPTION: "the evaluation set has the same caption",
    ASPECT_RATIO: "longer side / shorter side above filters.max_aspect",
    SCORE: "a score outside filters.scores",
    LEAKED: "the same bytes are an image of the evaluation set",
    NEAR_LEAKED: "nearly the same image is in the evaluation set",
    DUPLICATE: "the same bytes came earlier",
    NEAR_DUPLICATE: "nearly the same image is there, larger or earlier",
    BELOW_PX: "a side below that of the stage's squares, or of the image's bucket",
    HELD_OUT: "chosen for the validation loss",
}
