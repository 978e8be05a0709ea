"""From images to detections: the predictor, files, and forms that compute the same in less time."""
