"""A page to look at: a picture in, detections out; `fpg-zoo demo`, and a Space on the Hugging Face hub."""
