"""Preference scores: models that were trained to foresee which of two pictures of a prompt people prefer. One a module;
`scores.load` finds them by name. PickScore needs no package; HPSv2 and ImageReward come with theirs, installed apart."""
