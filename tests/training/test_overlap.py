from acemath_training.data.overlap import TemplateOverlap, runs


def test_numbers_and_case_do_not_hide_a_template() -> None:
    overlap = TemplateOverlap(["Mia picks 12 kg of red apples on each of 3 days. How many in all?"])
    assert overlap.touches("Then BEN picks 7 kg of red apples ON EACH of 30.5 days; is that much?")
    assert not overlap.touches("Ben picks pears for an hour and then goes home to sleep.")


def test_a_short_text_is_one_run() -> None:
    assert list(runs("Add 3 and 4")) == [("add", "#", "and", "#")]
    assert TemplateOverlap(["What is 3 + 4?"]).touches("what is 5 + 6?")


def test_the_known_source_of_a_template_is_found() -> None:
    """One of gsm_symbolic's templates was made from this problem of GSM8K's test set."""
    source = (
        "I have 10 liters of orange drink that are two-thirds water and I wish to add it to 15 liters of pineapple "
        "drink that is three-fifths water. But as I pour it, I spill one liter of the orange drink. How much water is "
        "in the remaining 24 liters?"
    )
    assert TemplateOverlap().touches(source)
