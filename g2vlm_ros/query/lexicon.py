# SPDX-License-Identifier: Apache-2.0
"""The words of questions, as data: which of them carry what meaning.

A sign is a meaning that words stand for: "how far", "distance" and "range" are all `far`. Patterns
are those of `re`, matched on whole words of lower-case text; the earlier of two signs wins. What
is no sign is part of a thing's name.
"""

from __future__ import annotations

LENGTH_UNITS = r"(?:met(?:er|re)s?|centimet(?:er|re)s?|cm|feet|foot|inch(?:es)?|steps)"
_SUBJECT = r"(?:i|you|we)"
_SEE = (
    r"(?:see|seen|saw|spot|spotted|notice|noticed|observed?|come across|come by|encounter(?:ed)?"
    r"|detect(?:ed)?|pass(?:ed)?(?= (?:the|an?|my|so|on|last|by)\b|$))"
)
_ONE_SIDE = (
    r"(?:(?:to|on|at|in) )?(?:(?:the|your|its|my|our|their) )?"
    r"(?:left|right|in front|front|ahead|behind|back)(?:[- ]hand)?(?: side)?(?: of)?"
    r"(?: (?:you|me|us)\b)?"
)

SIGNS: tuple[tuple[str, str], ...] = (
    ("modal", r"(?:could|would|should)(?= (?:the|an?|my|this|that|these|those)\b)"),
    # What is said around a question -----------------------------------------------------------
    ("skip", r"measur(?:ing|ed) from (?:the )?(?:closest|nearest) points?(?: of each(?: \w+)?)?"),
    (
        "skip",
        r"(?:please|kindly|(?<!the )robot,|hey|hello|ok|okay"
        r"|(?:(?:can|could|would|will) you )?(?:please )?"
        r"(?:tell|give|show|let) (?:me|us)(?: know)?(?! the way)"
        r"|do you (?:know|remember|recall)|any idea"
        rf"|{_SUBJECT}(?:'d| would)? (?:want|need|like|wonder)(?: you)?(?: to know)?(?! to)"
        r"|(?:can|could|would|will) you (?=(?:please )?(?:estimate|measure|count|find|locate"
        r"|go|drive"
        r"|move|walk|bring|take|lead|guide|come|head|navigate|return|show|name|list|determine)\b)"
        r"|would you say|is it true|true|say|state|estimate|calculate|compute|determine"
        r"|work out|find out|figure out|check whether|whether|help (?:me|us)|i can(?:no|')t find"
        r"|(?:seen )?from (?:your|this) (?:place|point of view|position)|that(?= (?:the|an?)\b))",
    ),
    (
        "skip",
        rf"(?:(?:measured |given )?in {LENGTH_UNITS}|in degrees|exactly|roughly|approximately"
        r"|approximate|rough|about(?= how)|currently|right now|now|again|still|ever|yet"
        r"|already|today|by (?:any )?chance"
        r"|altogether|in total|together|so far|overall|for me|by itself|over there|in here"
        r"|around here|over here|anywhere|somewhere|whereabouts(?= of)|in the end|first|then|also"
        r"|on (?:your|the|our) way|along the way|as well|away|off|last|down|would)",
    ),
    # What geometry does not answer -------------------------------------------------------------
    (
        "open",
        r"(?:(?:what|which|of (?:what|which)) (?:colou?r|shape|material|kinds?|types?|brand"
        r"|sort|make"
        r"|model|text|state)|the (?:colou?r|shape|material|purpose|use|function)|made (?:of"
        r"|from|out of)|why|who|whose|whom"
        r"|how (?:can|could|do|does|did|should|would|old|clean|dirty|heavy|warm|many times|often"
        r"|well|come|long (?:did|does|will|would) it take)|describe|explain|written"
        r"|what else could"
        rf"|where (?:can|could|should|would|might|do|may) {_SUBJECT} (?:put|place|store|sit"
        rf"|sleep|hang"
        r"|park|lie|rest|hide|wash|eat|cook|dry|throw)|suppose|imagine|assume|in case)",
    ),
    # Moments and memory -----------------------------------------------------------------------
    (
        "when",
        r"(?:when(?= (?:did|have|has|was|were)\b)|(?:at )?what time(?= (?:did|have|was|were)\b)"
        r"|how (?:long|many (?:seconds|minutes|hours|days)) ago"
        r"|how long (?:has it been|is it) since|how long since)",
    ),
    ("room", r"(?:in |to )?(?:which|what) room"),
    ("saw", rf"(?:have|did|had) {_SUBJECT} (?:(?:last|ever|already|also) )?(?:{_SEE}|find|found)"),
    (
        "end_up",
        rf"where (?:would|will|do|am|should) {_SUBJECT}(?: (?:be|end up|stand|land|arrive))?"
        r"(?= (?:if|when|after)\b|[ .?!]*$)",
    ),
    ("if", r"(?:if|after)"),
    # Amounts ----------------------------------------------------------------------------------
    ("degrees", r"(?:how many degrees|degrees|(?:what|which) (?:angle|turn)|angle)"),
    ("height", rf"how (?:many {LENGTH_UNITS} )?(?:tall|high)"),
    ("width", rf"how (?:many {LENGTH_UNITS} )?(?:wide|broad)"),
    ("depth", rf"how (?:many {LENGTH_UNITS} )?deep"),
    ("far", r"how long is the (?:way|path|route)"),
    ("length", rf"how (?:many {LENGTH_UNITS} )?long"),
    ("size", r"how (?:big|large)"),
    ("far", rf"(?:how|what) (?:many|number of) {LENGTH_UNITS}"),
    (
        "far",
        r"(?:how (?:far|close|near)|(?:walking |driving |straight[- ]line )?distances?"
        r"|separation|separat(?:es?|ing)|range(?= (?:to"
        r"|from|of|between)\b))",
    ),
    ("far", r"(?:apart|far(?= away|[ .?!]*$|\\? ))"),
    ("space", r"how much (?:free |clear )?(?:space|room)"),
    (
        "count",
        r"(?:how many|(?:(?:what|the|total) )*(?:number|count) of|count(?: (?:up|all|how many))*)",
    ),
    ("amount", r"(?:how much|how great|how)"),
    # Lengths, rooms between things --------------------------------------------------------------
    (
        "enough",
        r"(?:(?:wide|big|large|broad) enough|enough (?:space|room)|wider than|larger than"
        r"|more than|at least)",
    ),
    (
        "space",
        r"(?:(?:free |open |clear )?(?:gap|passage|opening|clearance|space)|room(?= (?:for"
        r"|between|do)\b)|left open)",
    ),
    ("height", r"height"),
    ("width", r"(?:width|breadth)"),
    ("length", r"length"),
    ("depth", r"depth"),
    ("size", r"(?:size|dimensions?|measurements)"),
    ("skip", r"longest"),
    # Sides ------------------------------------------------------------------------------------
    ("sides", rf"{_ONE_SIDE}(?:, (?:or )?{_ONE_SIDE})*,? or {_ONE_SIDE}"),
    ("which_side", r"(?:(?:on|to|at) )?(?:which|what) side"),
    ("direction", r"(?:(?:in|to) )?(?:which|what) (?:direction|way)"),
    ("direction", r"direction(?= (?:of|to)\b)"),
    # Comparisons ------------------------------------------------------------------------------
    ("closer", r"(?:closer|nearer|less far)"),
    ("farther", r"(?:more distant|further|farther)"),
    ("nearest", r"(?:nearest|closest)"),
    # Question words ---------------------------------------------------------------------------
    ("where", r"where(?:abouts)?"),
    ("where", r"(?:at|in) (?:what|which) (?:position|location|place)"),
    ("where", r"(?:(?:position|location|coordinates)(?= of\b|[ .?!]*$)|place(?= of\b))"),
    (
        "where",
        r"(?:locat(?:e|ing)|find(?:ing)?|(?:looking|look|searching|search) for|point (?:out"
        r"|at|to))",
    ),
    ("what", r"(?:what|which|name|list)"),
    # Deeds ------------------------------------------------------------------------------------
    ("turn", r"(?:turn(?:ing)?|rotat(?:e|ing)|spin)"),
    ("face", r"(?:face|facing|look(?:ing)? at|point(?:ing)? (?:at|towards?))"),
    (
        "go",
        r"(?:(?:take|bring|lead|guide|drive|show) (?:me|us)(?: the way| over)*"
        r"|(?:lead|show) the way|go(?: back)?(?: (?:and )?(?:wait|stay|park))?"
        r"|drive|navigate"
        r"|move|walk|head(?= (?:over|to|towards|back|for|up)\b)|come|get(?: closer| close)?"
        r"|return|stop(?= (?:in|at|near|before|next|by)\b)|approach|reach"
        r"|roll(?= .*between))(?: (?:through|by|past"
        r"|over|up|on|straight|close|next|along))*",
    ),
    ("fit", r"(?:fits?|pass|squeeze|slip|make it)(?: (?:through|by|past))?"),
    ("see", rf"(?:{_SEE}|find|found)"),
    (
        "visible",
        r"(?:visible|in (?:(?:the|this|these|any) )?(?:newest )?(?:sight|views?|images?"
        r"|pictures?)|nearby|around|installed|available|present(?= ?[.?!]?$)|there(?= ?[.?!]?$))",
    ),
    ("contain", r"(?:contains?|hold|holds|has|have got|got|have|shows?)"),
    ("there", r"(?:is|are|was|were) there"),
    ("skip", r"there"),
    (
        "be",
        r"(?:is|are|was|were|be|been|am|does|do|did|had|can|could|will|should|must|may|might"
        r"|shall)",
    ),
    (
        "stand",
        r"(?:(?:standing|stands|stood|hanging|hangs|sitting|sits|lying|lies|located|placed"
        r"|situated"
        r"|positioned|mounted|tucked|pushed|parked|stored|fixed|attached|kept|keep|put"
        r"|leave|belongs?|measures?|extends?|appears?|reaches)"
        r"|left(?= (?:my|the|our)\b)"
        r"|(?:stand|hang|sit|lie)(?= (?:to|from|on|in|left|right|behind|above|below|over|under\w*"
        r"|between"
        r"|next|near\w*|clos\w+|at|there)\b|[ .?!]*$)|take up)",
    ),
    ("skip", r"(?:of (?:the two|them|these)|both)"),
    # Places beside things ---------------------------------------------------------------------
    (
        "relative",
        r"(?:(?:relative|with respect|compared|with regard) (?:to|with)|seen from|as seen from"
        r"|starting (?:at|from))",
    ),
    ("left", r"(?:(?:to|on|at) )?(?:the )?left(?:[- ]hand)?(?: side)? of"),
    ("right", r"(?:(?:to|on|at) )?(?:the )?right(?:[- ]hand)?(?: side)? of"),
    ("left", r"(?:to|on|at) (?:the|your|my|our) left(?:[- ]hand)?(?: side)?"),
    ("right", r"(?:to|on|at) (?:the|your|my|our) right(?:[- ]hand)?(?: side)?"),
    ("front", r"(?:in front(?: of)?|ahead of|before)"),
    ("behind", r"(?:behind|at the back of)"),
    ("above", r"(?:above|over|on top of)"),
    ("below", r"(?:below|under|underneath|beneath)"),
    ("between", r"(?:in between|between)"),
    ("than", r"than"),
    ("from", r"from"),
    ("to", r"(?:up to|next to|close to|to|towards?)"),
    ("in", r"(?:in|inside|within)"),
    ("on", r"on"),
    ("of", r"of"),
    ("for", r"(?:for|with|by|at|near)"),
    ("or", r"or"),
    ("and", r"and"),
    ("stop", r"(?:so that|because|since|until|that|when)"),
    ("viewer", r"(?:i|you|we|me|us)"),
)
"""Signs and the words that stand for them. `skip` is of no meaning but parts names."""

MARKS = (("stop", r"[,.?!:;()]"), ("possessive", r"'s\b"))
"""Signs that are no words."""
COMPOUNDS = (
    r"(?:(?:trash|garbage|watering|soda|tin) cans?"
    r"|first[- ]aid (?:kit|box)(?:es|s)?|(?:flash|hard) drives?|(?:toilet|paper) rolls?"
    r"|bus stops?|stop signs?|boarding pass(?:es)?|(?:tv|coat|plant|music|umbrella) stands?"
    r"|space heaters?|place mats?|depth cameras?|gift present|in-tray|on-off switch|left-overs)"
)
"""Names that hold words of signs."""
RELATIONS = ("left", "right", "front", "behind", "above", "below")
DIMENSIONS = ("height", "width", "length", "depth", "size")
ROLES = frozenset(
    (*RELATIONS, "relative", "between", "than", "from", "to", "in", "on", "of", "for", "nearest")
    + ("count", "face")
)
"""Signs that say which part the next name plays."""

STATEMENT = r"there (?:is|are|was|were)\b"
"""How a sentence begins that asks nothing."""
CONTRACTIONS = (
    (r"\b(what|where|who|how|it|that|there|here)'s\b", r"\1 is"),
    (r"\b(what|where|who)'re\b", r"\1 are"),
    (r"\bi'm\b", "i am"),
    (r"\bi'd\b", "i would"),
)
DETERMINERS = (
    r"(?:the|an?|my|your|our|his|her|their|any|some|every|all|each|this|that|these|those|more"
    r"|different|another|other|its)"
)
VIEWER_NAMES = r"(?:i|you|we|me|us|yourself|viewer|camera|robot|observer|here|newest view|myself)"
VIEWER_NAMES_BUT_ROBOT = VIEWER_NAMES.replace("robot|", "")
"""Where nothing else is asked about, a robot is a thing: a toy, or another one in view."""
PRONOUNS = r"(?:it|they|them|one|ones|he|she|which|what|itself|its|their|things?|each|object)"
"""What stands for a thing that is named elsewhere in the question."""
ANYTHING = frozenset(("", "one", "thing", "object", "item", "things", "objects", "items"))
PICTURES = r"(?:images?|pictures?|photos?)"
"""What the cameras show, where something is asked for in it."""
SCENES = (
    r"(?:room|views?|scene|place|home|house|flat|apartment|way|floor plan"
    r"|sight|frame|newest views?|time)"
)
"""What the cameras show, or all of it: no thing, and no room of its own."""
OF_VIEWS = (
    r"\b(?:(?:newest|current|these|this|the) (?:views?|images?|frames?)|in (?:view|sight)|visible"
    r"|(?:do|can) (?:you|we|i) see)\b"
)
"""That the question whether there is one means the views alone."""
