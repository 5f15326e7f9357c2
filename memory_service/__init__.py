"""A personalization memory for chat assistants that lives in weights, not in the prompt.

The way of the data is the way through the tree (`examples/follow_one_turn.py` runs it):

    turn -> chunk -> hidden states -> update -> state -> adapter -> chat

    turn -> chunk             domain.chunks                 turns cut to at most `chunk_tokens`
    chunk -> hidden states    generator.hidden_states       by the frozen base model
    hidden states -> update   generator.generator           keys and values of every token, summed
    update -> state           generator.state               added as integers, exactly
    (kept)                    services.remember, storage    one row per version
    state -> adapter          generator.readout             one small matrix per adapted module
    adapter -> chat           generator.injection, inference.local   streamed answer
"""

__version__ = "0.1.0"
