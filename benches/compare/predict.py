"""Predicts one photo's class with torchvision and scikit-learn: python predict.py WEIGHTS MODEL PHOTO THREADS"""

import sys

import joblib
import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

weights, model, photo, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
network = torchvision.models.resnet50(weights=None)
network.load_state_dict(load_file(weights), strict=False)
network.fc = torch.nn.Identity()
transform = transforms.Compose(
    [
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)
with torch.inference_mode():
    features = network.eval()(transform(Image.open(photo).convert("RGB"))[None]).numpy()
classifier = joblib.load(model)
probabilities = classifier.predict_proba(features)[0]
for label in np.argsort(-probabilities)[:3]:
    print(f"{classifier.classes_[label]} {100 * probabilities[label]:.1f} %")
