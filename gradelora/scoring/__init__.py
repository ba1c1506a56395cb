"""What a model says about answers: every allowed score by its likelihood; evaluate, score and merge share it."""
