"""Floor 6: a model as a service: an engine that batches the network, an API of OpenAI's form, and a page."""
