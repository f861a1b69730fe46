"""What the pictures say: words of signs, posters, logos and menus, and what made-up words are made of."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _listed(
    """
    at be by do go in it me my no of ok on or so to up us we act add air all any arc ark arm art ask bag
    ban bar bat bay bed bee bet big bit bow box boy bug bus buy cab cap car cat cow cup cut day den dig
    dog dot dry ear eat egg elf end era eye fan far fig fin fit fix fly fog fox fun fur gap gas gem get
    gin gum gym hat hen hip hop hot hub ice ink inn jam jar jet job joy key kid kit lab law leg let lid
    lip log lot low max men mix mom mud mug net new nod now nut oak off oil old one our out own paw pay
    pea pen pet pie pig pin pop pot pub pun put ram raw red rib rim row rug run rye sea set shy sip six
    sky spa spy sum sun tag tan tap tax tea ten tie tin tip toe top toy try two van vet vow wax way web
    wet wig win wit yes zen zip zoo also aqua area away baby back bake ball band bank bark barn base
    bath beam bean bear beat beer bell belt best bike bird blue boat body bold bolt book boom boot born
    boss bowl bulb buzz cafe cake call calm camp card care cart cash cave chef chip city clay club coal
    coat coin cold cook cool corn cozy crab crew crop cube dark date deal deep deli desk dial dish dive
    dock door down drum duck dusk dust easy echo edge epic exit face fair farm fast film fire fish five
    flag flat flow foam folk food foot fork fort free frog fuel full gate gift girl give glad glow goat
    gold golf good grid grow half hall hand happy harp heat help herb hero high hike hill holy home hook
    hope host hour idea iris iron jazz join jump keep kind king kite kiwi lake lamb lamp land lane last
    leaf left lift lily lime line link lion list live loft logo long look loop loud love luck lunar made
    mail main mall mango map mask meal meat meet melt menu mild milk mind mint mode moon more moss move
    much muse myth navy near neon nest next nice nine noon nova oath oven pack page paid palm park part
    pass path peak pear pick pine pink pint plan play plum plus poem poet pond pony pool port post pull
    pure push quay quiz race rain real rest rice rich ride ring rise road roar rock roll roof room root
    rope rose ruby rush safe sage sail sale salt sand save seat seed sell ship shoe shop show side sign
    silk sing skin snow soap sock soda sofa soft soil sold solo song soon soul soup spin spot star stay
    stem step stir stop sure surf swan swim taco tail take talk tank team tent test text tide time tiny
    toast today tone tour town tree trip true tune turn unit vase vega verb very view vine visa vote
    wage wait walk wall warm wash wave west wide wild wind wine wing wish wolf wood wool work yard yarn
    year yoga yolk zero zest zinc zone zoom acorn adopt agile album alley alpha amber angel ankle apple
    apron arena atlas award bacon badge bagel bakery basil beach beard berry blaze blend bliss bloom
    board bonus brain brand brave bread brick bride brook brunch brush build cabin camel candy canoe
    cedar chain chair chalk chess chili cider civic class clean cloud clown coach cobra cocoa comet
    comic coral crane cream crown curry cycle daisy dance delta diner disco dough draft dream dress
    drink drive eagle early earth eight elbow ember empty enjoy enter equal event extra fable faith
    feast fence ferry field final first flame flash fleet flour focus forge forum fresh frost fruit
    ghost giant glass globe grace grain grand grape grass green grill group guard guest guide habit
    heart hello honey horse hotel house human ideal igloo ivory jelly jewel juice jumbo kayak knife
    known label large laser latte laugh layer learn lemon level light local lotus lucky lunch magic
    major maker maple march match medal melon metal meter micro model money month motor mount mouse
    mouth movie music never night noble north novel ocean offer olive onion opera orbit order organ
    oxide panda paper party pasta patio peace peach pearl phone photo piano pilot pixel pizza place
    plant plate plaza point polar power press pride prime prize proof proud punch pupil queen quick
    quiet radio ranch ready relax ridge rival river robot rocky royal rugby salad salon sauna scarf
    scout seven shade shape share shark sheep shelf shell shine shore short sight skate slice smart
    smile smoke snack solar solid sound south space spark spice sport stack staff stage stamp stand
    start steak steam steel stone store storm story study sugar sunny super sushi swift table tango
    taste thank think three ticket tiger title token tower trail train treat trend tribe truck trust
    tulip twins ultra union unity urban valid value vapor video villa vinyl viola vital vivid voice
    wagon waist water wheel white whole woman world young youth zebra anchor animal artist autumn bamboo
    banana basket beauty bottle branch breeze bridge bright broken bronze bubble bucket burger butter
    button cactus camera candle canvas canyon carbon carrot castle cheese cherry choice circle circus
    citrus closed coffee copper cosmic cotton coupon course crafts create custom dental design dinner
    dragon eleven empire energy engine fabric family famous farmer finish fitness flight flower folder
    forest fossil frozen future galaxy gallery garage garden garlic ginger global golden ground growth
    guitar hammer harbor health helmet hockey hunger indigo island jacket jersey jungle kettle kitten
    ladder legend lesson little lounge luxury mantis marble market meadow medium mellow memory mirror
    mobile modern moment monkey museum mutual napkin native nature needle nickel number office online
    open orange orchid oyster palace parade parrot pastry pebble pencil people pepper period pickle
    picnic pillow planet pocket poetry police poster potato powder public purple puzzle rabbit racing
    record relief repair resort rhythm ribbon rocket saddle safari salmon sample school season secret
    select senior silver simple singer single sketch smooth soccer spirit splash spring square stable
    statue stereo street stripe studio summer sunset supply surfer sweets switch talent tavern temple
    tennis thunder tomato travel tunnel turtle unique useful valley vanilla velvet violet vision walnut
    wallet warmth weekly window winner winter wisdom wonder yellow airport antique balance balloon
    bargain bicycle biscuit blanket bouquet boutique breakfast brother caramel central chapter charity
    chicken classic college comfort concert cookies cottage country courage cricket crystal culture
    delight dessert digital dolphin express factory fashion feather festival fiction florist freedom
    freight gateway general glacier gourmet grocery harvest history holiday horizon jewelry journal
    journey kitchen lantern leather library loyalty machine manager medical melody mineral miracle
    monster morning musical mystery network notebook opening organic outdoor package paradise parking
    passion pattern penguin perfect picture pioneer popcorn premium present private pumpkin quality
    quarter railway rainbow recycle regular retreat romance running sandwich satisfy science seafood
    sesame service shelter shopping skyline society special stadium station student success sunrise
    support surface tobacco theatre tonight tourist traffic trailer trainer uniform utopia vacation
    variety vehicle village vintage volcano voyage weather wedding weekend welcome western whisper
    workshop writing
    """
)

# Made-up words: syllables of these sound like words, so that spelling is learnt and not a list.
ONSETS = _listed("b c d f g h j k l m n p qu r s t v w x y z bl br ch cl cr dr fl gr pl sh st th tr")
VOWELS = _listed("a e i o u a e i o ai ee oa ou y")
CODAS = _listed("b d g k l m n p r s t x z ck ll nd ng nt rk rt st")
NO_CODA = 0.45  # share of syllables that end in their vowel

# Frequent on signs, few enough to be learnt by a small model. Most useful first.
CHARACTERS = (
    "开关门口出入大小上下中心营业欢迎光临新品特价优惠打折限时买一送免费年月日天春夏秋冬节快乐生"
    "好美食茶咖啡酒店饭书花家国风山水火车停场请勿吸烟注意安全电会员早晚明今雨地人平和福市进气方第"
)

CHINESE_WORDS = _listed(
    """
    开业 开门 关门 开关 入口 出口 门口 出入口 大门 小门 上门 营业 营业中 欢迎 欢迎光临
    欢迎会员 新品 新品上市 新店 新店开业 新年 新年好 新年快乐 新春 新春快乐 新茶 新书 特价
    特价品 特惠 优惠 优惠价 优惠日 打折 打折中 限时 限时打折 限时优惠 限时特价 限时免费 限时营业
    免费 免费送 免费停车 买一送一 送花 送茶 送书 年年 月月 天天 日日 天天快乐 天天特价 今天
    今日 今晚 今年 今日特价 今日优惠 今日营业 明天 明日 明月 明年 春天 夏天 秋天 冬天 春日
    夏日 秋日 冬日 春节 春节快乐 春风 春雨 秋风 秋雨 夏雨 冬雨 春茶 秋月 节日 节日快乐 快乐
    快乐人生 生日 生日快乐 生日会 人生 人人 美食 美食节 美食家 美好 美人 美酒 好茶 好酒 好书
    好人 好天气 早茶 早饭 早安 早上 早上好 晚上 晚上好 晚安 晚饭 晚会 茶会 茶花 花茶 茶店
    咖啡 咖啡店 咖啡时光 酒店 饭店 花店 书店 小店 大酒店 小酒店 家人 大家 国家 国风 中国
    中国风 中国茶 中国年 风光 风雨 山水 山水茶 火山 火车 水火 下雨 下山 上山 上车 下车 小心
    小心火车 注意 注意安全 安全 安全出口 安全第一 停车 停车场 停车费 车门 车费 水电 水费 电费
    电车 请勿吸烟 请勿停车 请勿入场 请勿打开 请进 入场 出场 入会 会场 会员 会员日 会员价
    会员优惠 会员免费 会员特价 平安 平和 和平 和风 福气 送福 福人 福地 大地 天地 天地人 中心
    中心书店 人心 开心 开花 花开 花美 明光 时光 好时光 火光 月光 日光 平日 小雨 大雨 大风
    小花 大山 小山 春山 口福 地方 好风光 风光好 平地 平时 一口 一天 一年 一月 一日 一人 一心
    一心一意 一家人 全家 全家福 全国 全年 全场 全场打折 全场特价 全天 全天营业 全新 全新上市
    """
)
