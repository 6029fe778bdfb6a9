"""CRIU, which writes processes to files and makes them again (criu(8)): its service, spoken to.

`protobuf` is the encoding, `messages` what is said, `service` the conversation.
"""
