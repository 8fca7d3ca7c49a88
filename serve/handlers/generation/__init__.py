"""The parts of text generation: checkpoint -> weights -> cache -> decoder -> sampling -> text -> answers."""
