"""One folder an op: the public function beside the definition."""
