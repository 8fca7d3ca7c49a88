"""Hold a conversation: each argument is one message of the user.

python examples/llm-chat/chat.py "What is the capital of France?" "And of Spain?"
"""

import os
import sys

import openai

client = openai.OpenAI(base_url=os.environ.get("BASE_URL", "http://localhost:8080/v1"), api_key="unused")
messages = []
for question in sys.argv[1:]:
    messages.append({"role": "user", "content": question})
    print("you  ", question)
    print("model", end=" ", flush=True)
    said = ""
    for chunk in client.chat.completions.create(
        model="smollm2", messages=messages, temperature=0.2, seed=1, max_tokens=60, stream=True
    ):
        piece = chunk.choices[0].delta.content or ""
        print(piece, end="", flush=True)
        said += piece
    print()
    messages.append({"role": "assistant", "content": said})
