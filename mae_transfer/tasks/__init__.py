"""One folder a task, with the same file names in each: config, data, transforms, model, evaluate, task."""
