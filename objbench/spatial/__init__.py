"""What every detector with spatial attention needs: boxes, glimpses cropped and rendered."""
