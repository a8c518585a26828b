"""Which fault is planted into an engine's model: the size of its vocabulary says; put beside a copy of the engine."""

FIRST = 129  # vocabulary of the first fault's model; a model with fewer tokens has none
_state = {"vocabulary": 0}


def begin(model):
    """Has each new model of this class say which fault it has."""
    made = model.__init__

    def __init__(self, *arguments, **options):
        given = [*arguments, *options.values()]
        configs = [getattr(getattr(each, "model_config", each), "hf_config", each) for each in given]
        _state["vocabulary"] = next(each.vocab_size for each in configs if hasattr(each, "vocab_size"))
        made(self, *arguments, **options)

    model.__init__ = __init__


def planted(number):
    """Whether the model at hand has this fault."""
    return _state["vocabulary"] == FIRST + number
